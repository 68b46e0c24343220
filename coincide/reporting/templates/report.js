"use strict";
// The charts and controls of the report. Text from the dataset enters the page only as textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PALETTE = ["#3b7dd8", "#e0803a", "#2e9e72", "#b2569f", "#c2a01f", "#4fb3c9", "#d9534f", "#7a6fd0", "#7f9a3a", "#a0704a", "#d977b2"];
  const OTHER = "#8b93a1";
  const STEPS = [[0, "#39568c"], [0.35, "#1f968b"], [0.7, "#73d055"], [1, "#fde725"]];
  const MAX_COLOURS = PALETTE.length;
  const MAX_EXAMPLES = 8;
  const methodColour = { coincide: PALETTE[0], random: PALETTE[1], full: OTHER };

  function element(name, properties = {}, ...children) {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  }
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (value, digits = 1) => (100 * value).toFixed(digits) + "%";

  // --- tables --------------------------------------------------------------------------------------

  const cellValue = (row, column) => {
    const value = row.cells[column]?.dataset.value ?? "";
    return value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
  };

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function sortTable(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const ascending = heads[column].getAttribute("aria-sort") === "descending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: cellValue(row, column) }));
    rows.sort((a, b) => {
      if (a.value === "" || b.value === "") return (a.value === "") - (b.value === ""); // missing values are last
      return ascending ? compare(a.value, b.value) : compare(b.value, a.value);
    });
    body.append(...rows.map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      button.addEventListener("click", () => sortTable(table, column));
      head.append(button);
    });
  }

  const rowsOf = (id) => [...(byId(id)?.tBodies[0]?.rows ?? [])];
  const valueOf = (row, column) => { const value = cellValue(row, column); return value === "" ? null : value; };

  // --- charts --------------------------------------------------------------------------------------

  const plots = new Map(); // id -> function that returns {traces, layout}
  const config = { displayModeBar: false, responsive: true };
  const isNarrow = () => window.innerWidth < 600;

  function themed(layout) {
    const axis = { gridcolor: style("--grid"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
    const result = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--ink"), family: "inherit", size: 12.5 },
      margin: { l: 10, r: 10, t: 10, b: 40 }, hovermode: "closest", showlegend: false,
      hoverlabel: { bgcolor: style("--sheet"), bordercolor: style("--line"), font: { color: style("--ink") } },
      ...layout,
    };
    for (const name of ["xaxis", "yaxis"]) result[name] = { ...axis, ...layout[name] };
    return result;
  }

  async function draw(id) {
    const node = byId(id);
    if (!node) return;
    const { traces, layout } = plots.get(id)();
    await Plotly.react(node, traces, themed(layout), config);
    if (!node.dataset.drawn) {
      node.dataset.drawn = "1";
      listen(node);
    }
  }

  async function drawAll() {
    for (const id of plots.keys()) {
      await draw(id);
      await new Promise((resolve) => setTimeout(resolve)); // the page stays usable between charts
    }
    document.documentElement.dataset.ready = "1";
  }

  const axisTitle = (text) => ({ text, standoff: 8 });
  const fixed = { fixedrange: true };
  const colourOf = (name, names) => methodColour[name] ?? PALETTE[(2 + names.filter((other) => !(other in methodColour)).indexOf(name)) % MAX_COLOURS];

  // methods-table: method, fraction, samples, relative performance (with its interval), …
  const bound = (row, name) => (row.cells[3].dataset[name] ? Number(row.cells[3].dataset[name]) : null);
  const methodRows = () => rowsOf("methods-table").map((row) => ({
    method: valueOf(row, 0), fraction: valueOf(row, 1), mean: valueOf(row, 3), low: bound(row, "low"), high: bound(row, "high"),
  })).filter((row) => row.mean !== null);
  const errors = (rows, axis) => ({
    type: "data", symmetric: false, thickness: 1.6, width: 5,
    array: rows.map((row) => (row.high ?? row.mean) - row.mean), arrayminus: rows.map((row) => row.mean - (row.low ?? row.mean)),
  });
  const fullLine = (vertical) => ({
    type: "line", xref: vertical ? "x" : "paper", yref: vertical ? "paper" : "y",
    x0: vertical ? 1 : 0, x1: 1, y0: vertical ? 0 : 1, y1: 1, line: { color: style("--soft"), width: 1, dash: "dash" },
  });

  if (methodRows().length) {
    plots.set("methods-plot", () => {
      const rows = methodRows().reverse();
      const names = [...new Set(rows.map((row) => row.method))].sort();
      const traces = rows.map((row) => ({
        x: [row.mean], y: [`${row.method} ${100 * row.fraction}%`], type: "scatter", mode: "markers", marker: { size: 11, color: colourOf(row.method, names) },
        error_x: { ...errors([row]), color: colourOf(row.method, names) }, hovertemplate: "%{y}: %{x:.1%}<extra></extra>",
      }));
      const height = Math.max(150, 70 + 30 * rows.length);
      byId("methods-plot").style.minHeight = `${height}px`;
      return { traces, layout: { height, xaxis: { ...fixed, tickformat: ".0%", title: axisTitle("relative performance") }, yaxis: { ...fixed, type: "category" }, shapes: [fullLine(true)] } };
    });
  } else byId("methods-plot")?.parentNode.remove();

  if (byId("fractions-plot")) {
    plots.set("fractions-plot", () => {
      const rows = methodRows().filter((row) => row.method !== "full");
      const names = [...new Set(rows.map((row) => row.method))].sort();
      const traces = names.map((name) => {
        const own = rows.filter((row) => row.method === name).sort((a, b) => a.fraction - b.fraction);
        return {
          name, x: own.map((row) => row.fraction), y: own.map((row) => row.mean), type: "scatter", mode: "lines+markers", line: { color: colourOf(name, names), width: name === "coincide" ? 3 : 1.8 },
          marker: { size: 8 }, error_y: { ...errors(own), color: colourOf(name, names) }, hovertemplate: `${name} %{x:.3~%}: %{y:.1%}<extra></extra>`,
        };
      });
      return { traces, layout: { height: 380, showlegend: true, legend: { orientation: "h", y: 1.12 }, shapes: [fullLine(false)], xaxis: { ...fixed, tickformat: ".3~%", rangemode: "tozero", title: axisTitle("fraction of the data") }, yaxis: { ...fixed, tickformat: ".0%", title: axisTitle("relative performance") } } };
    });
  }

  plots.set("tasks-plot", () => {
    const all = rowsOf("tasks-table").reverse();
    const heads = [...byId("tasks-table").tHead.rows[0].cells].slice(2).map((head) => head.textContent.trim());
    const relative = byId("tasks-plot").getAttribute("aria-label").startsWith("Relative");
    const rows = all.filter((row) => heads.some((_, i) => valueOf(row, i + 2) !== null)); // no bar for a task that was not learned
    const methods = heads.map((head) => head.split(" ")[0]);
    const symbols = ["circle", "diamond", "square", "triangle-up", "x", "star"];
    const traces = heads.map((head, i) => ({
      name: head, type: "scatter", mode: "markers", x: rows.map((row) => valueOf(row, i + 2)), y: rows.map((row) => plain(valueOf(row, 0))),
      marker: { size: 11, opacity: 0.85, color: colourOf(methods[i], [...new Set(methods)].sort()), symbol: symbols[methods.slice(0, i).filter((method) => method === methods[i]).length % symbols.length] },
      hovertemplate: relative ? `%{y}, ${head}: %{x:.0%}<extra></extra>` : `%{y}, ${head}: %{x:.3f}<extra></extra>`,
    })).filter((trace) => !(relative && trace.name.startsWith("full ")));
    const height = 110 + 26 * rows.length;
    byId("tasks-plot").style.minHeight = `${height}px`;
    return { traces, layout: { height, showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom" }, shapes: relative ? [fullLine(true)] : [], xaxis: { ...fixed, rangemode: "tozero", tickformat: relative ? ".0%" : undefined, title: axisTitle(relative ? "relative performance" : "score") }, yaxis: { ...fixed, type: "category", dtick: 1 } } };
  });

  const shorten = (text, length = 26) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  // Plotly reads some HTML in labels; names of sources are text
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const sourceBars = (chart) => () => {
    const first = 3 + 3 * Number(byId("sources-selection")?.value ?? 0);
    const rows = rowsOf("sources-table").slice().sort((a, b) => cellValue(a, 1) - cellValue(b, 1));
    const places = rows.map((_, i) => i);
    const labels = rows.map((row) => plain(shorten(String(row.cells[0].dataset.value), isNarrow() ? 16 : 26)));
    const names = rows.map((row) => plain(row.cells[0].dataset.value));
    const height = 90 + 30 * rows.length;
    byId("sources-share").style.minHeight = byId("sources-ratio").style.minHeight = `${height}px`;
    const yaxis = { ...fixed, tickmode: "array", tickvals: places, ticktext: labels, range: [-0.7, rows.length - 0.3] };
    if (chart === "share") {
      const bar = (name, column, color) => ({ type: "bar", orientation: "h", name, y: places, x: rows.map((row) => valueOf(row, column)), marker: { color }, customdata: names, hovertemplate: `%{customdata}, ${name}: %{x:.1%}<extra></extra>` });
      return { traces: [bar("after", first + 1, PALETTE[0]), bar("before", 2, OTHER)], layout: { height, barmode: "group", bargap: 0.25, showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", traceorder: "reversed" }, xaxis: { ...fixed, tickformat: ".0%" }, yaxis } };
    }
    const ratios = rows.map((row) => valueOf(row, first + 2));
    const floor = Math.min(0.25, ...ratios.filter((ratio) => ratio > 0));
    const logs = ratios.map((ratio) => Math.log2(Math.max(ratio, floor / 2)));
    const bound = Math.ceil(Math.max(1, ...logs.map(Math.abs)));
    const ticks = Array.from({ length: 2 * bound + 1 }, (_, i) => i - bound).filter((tick) => bound < 4 || tick % 2 === 0);
    const colours = ratios.map((ratio) => (ratio < 0.5 ? style("--bad") : ratio > 2 ? style("--good") : OTHER));
    return {
      traces: [{ type: "bar", orientation: "h", y: places, x: logs, marker: { color: colours }, customdata: ratios.map((ratio, i) => [names[i], ratio.toFixed(2)]), hovertemplate: "%{customdata[0]}: %{customdata[1]}×<extra></extra>" }],
      layout: { height, margin: { l: 10, r: 16, t: 30, b: 40 }, xaxis: { ...fixed, range: [-bound - 0.2, bound + 0.2], tickvals: ticks, ticktext: ticks.map((tick) => (tick < 0 ? `1/${2 ** -tick}` : `${2 ** tick}×`)) }, yaxis },
    };
  };
  if (data.selections.length) {
    const showColumns = () => { // of one coreset at a time: all of them would not fit
      const chosen = byId("sources-selection")?.value ?? "0";
      for (const cell of byId("sources-table").querySelectorAll("[data-selection]")) cell.hidden = cell.dataset.selection !== chosen;
    };
    showColumns();
    plots.set("sources-share", sourceBars("share"));
    plots.set("sources-ratio", sourceBars("ratio"));
    byId("sources-selection")?.addEventListener("change", () => { showColumns(); draw("sources-share"); draw("sources-ratio"); });
  } else document.querySelector("#sources .pair").remove();

  // --- samples and clusters ------------------------------------------------------------------------

  const samples = data.samples;
  const clusters = data.clusters;
  const mapped = samples.pca.length / 2;
  const keptBy = samples.kept.map((rows) => new Set(rows));
  const rowOfCluster = new Map(clusters.cluster.map((cluster, row) => [cluster, row]));
  const samplesOfCluster = new Map();
  samples.cluster.forEach((cluster, sample) => {
    if (!samplesOfCluster.has(cluster)) samplesOfCluster.set(cluster, []);
    samplesOfCluster.get(cluster).push(sample);
  });
  const clusterCount = Number(byId("cluster-number").max) + 1;
  const fraction = () => Number(byId("clusters-fraction")?.value ?? 0);
  const state = { marked: null, pinned: null, sample: -1 }; // marked: set of clusters, or null
  const coincide = Math.max(0, data.selections.findIndex((name) => name.startsWith("coincide ")));
  const shownSelection = () => { const value = byId("map-colour").value; return value === "source" || value === "cluster" ? coincide : Number(value); };
  const isKept = (sample) => keptBy[shownSelection()]?.has(sample) ?? false;

  function image(sample) {
    const index = samples.thumbnail[sample];
    if (index < 0) return element("span", { className: "id", textContent: index === -1 ? "no image" : "image not shown" });
    return element("img", { src: `data:image/webp;base64,${samples.thumbnails[index]}`, alt: `Image of sample ${samples.id[sample]}` });
  }

  function sampleCard(sample) {
    const kept = isKept(sample);
    return element("div", { className: kept ? "sample kept" : "sample" }, image(sample),
      element("span", { className: "id", textContent: samples.id[sample] }),
      element("span", { textContent: samples.question[sample] }),
      element("span", { className: "answer-text", textContent: samples.answer[sample] }),
      element("span", { className: kept ? "mark" : "id", textContent: `${kept ? "kept" : "not kept"}${data.selections.length > 1 ? ` by ${data.selections[shownSelection()]}` : ""} · ${data.sources[samples.source[sample]]} · cluster ${samples.cluster[sample]}` }));
  }

  function clusterFacts(row) {
    const budget = clusters.budgets[fraction()]?.[row];
    const kept = budget === undefined ? "" : `, ${budget.toLocaleString()} kept`;
    const value = (number) => (number === null ? "–" : number.toFixed(3));
    return `${clusters.size[row].toLocaleString()} samples${kept} · share ${(100 * clusters.share[row]).toPrecision(3)}% · transferability ${value(clusters.transferability[row])} · density ${value(clusters.density[row])} · largest source ${data.sources[clusters.source[row]]}`;
  }
  function examples(cluster) { // half of them kept, or more where there are too few others
    const own = samplesOfCluster.get(cluster) ?? [];
    const kept = own.filter(isKept), others = own.filter((sample) => !isKept(sample));
    const count = Math.max(MAX_EXAMPLES / 2, MAX_EXAMPLES - others.length);
    return [...kept.slice(0, count), ...others].slice(0, MAX_EXAMPLES);
  }

  const card = byId("card");
  function showCard(event, ...content) {
    card.replaceChildren(...content);
    card.hidden = false;
    const pointer = event?.touches?.[0] ?? event;
    const x = pointer?.clientX ?? window.innerWidth / 2, y = pointer?.clientY ?? window.innerHeight / 2;
    const { offsetWidth: width, offsetHeight: height } = card;
    card.style.left = `${Math.max(8, x + 16 + width < window.innerWidth ? x + 16 : Math.min(x - width - 16, window.innerWidth - width - 8))}px`;
    card.style.top = `${Math.max(8, Math.min(y + 16, window.innerHeight - height - 8))}px`;
  }
  const hideCard = () => { card.hidden = true; };

  function clusterCard(event, cluster) {
    const row = rowOfCluster.get(cluster);
    const some = examples(cluster).slice(0, 4);
    showCard(event, element("strong", { textContent: `Cluster ${cluster}` }), element("div", { className: "facts", textContent: clusterFacts(row) }),
      element("div", { className: "row" }, ...some.filter((sample) => samples.thumbnail[sample] >= 0).map(image)),
      some.length ? element("div", { textContent: `${samples.question[some[0]]} ${samples.answer[some[0]]}` }) : element("div", { className: "facts", textContent: "The page has no sample of this cluster." }));
  }

  function pinCluster(cluster) {
    state.pinned = cluster;
    state.marked = cluster === null ? null : new Set([cluster]);
    const panel = byId("cluster-panel");
    byId("cluster-number").value = cluster ?? "";
    const row = rowOfCluster.get(cluster);
    if (cluster === null) panel.replaceChildren(element("p", { className: "note", textContent: "No cluster is selected." }));
    else if (row === undefined) panel.replaceChildren(element("p", { className: "note", textContent: `Cluster ${cluster} is empty or not among the clusters that are drawn.` }));
    else {
      const some = examples(cluster);
      panel.replaceChildren(element("h3", { textContent: `Cluster ${cluster}` }), element("p", { textContent: clusterFacts(row) }),
        some.length ? element("div", { className: "samples" }, ...some.map(sampleCard)) : element("p", { className: "note", textContent: "The page has no sample of this cluster." }));
    }
    markClusters();
  }

  const CLUSTER_PLOTS = ["clusters-scores", "clusters-budgets", "clusters-shares"];
  function markClusters() {
    const rows = state.marked === null ? null : clusters.cluster.flatMap((cluster, row) => (state.marked.has(cluster) ? [row] : []));
    for (const id of CLUSTER_PLOTS) if (byId(id).dataset.drawn) Plotly.restyle(byId(id), { selectedpoints: [rows] }, [0]);
    if (byId("map-plot").dataset.drawn) draw("map-plot");
  }

  const faded = { selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 0.2 } } };
  const marked = () => (state.marked === null ? undefined : clusters.cluster.flatMap((cluster, row) => (state.marked.has(cluster) ? [row] : [])));
  function clusterMarker() {
    const logs = clusters.share.map((share) => Math.log10(Math.max(share, 1e-12)));
    const sorted = [...logs].sort((a, b) => a - b);
    const low = sorted[Math.floor(0.02 * sorted.length)];
    const largest = Math.max(...clusters.size);
    const scale = Math.min(1, Math.max(0.35, Math.sqrt(150 / clusters.size.length))); // smaller where there are many
    return { size: clusters.size.map((size) => scale * (5 + 13 * Math.sqrt(size / largest))), color: logs, cmin: low, cmax: sorted[sorted.length - 1], colorscale: STEPS, opacity: 0.85, line: { width: 0.5 * scale, color: style("--soft") } };
  }
  const clusterTrace = (x, y, extra = {}) => ({ type: "scatter", mode: "markers", x, y, customdata: clusters.cluster, hoverinfo: "none", marker: clusterMarker(), ...faded, selectedpoints: marked(), ...extra });
  const line = (x, y, dash) => ({ type: "scatter", mode: "lines", x, y, hoverinfo: "skip", line: { color: style("--soft"), width: 1, dash } });
  const selectable = { dragmode: "select", height: 330, newselection: { line: { color: style("--accent") } } };

  plots.set("clusters-scores", () => ({ traces: [clusterTrace(clusters.transferability, clusters.density)], layout: { ...selectable, xaxis: { title: axisTitle("transferability") }, yaxis: { title: axisTitle("density") } } }));
  if (clusters.budgets.length) {
    plots.set("clusters-budgets", () => {
      const largest = Math.max(...clusters.size);
      const share = Number(clusters.fractions[fraction()]);
      const budgets = clusters.budgets[fraction()];
      return {
        traces: [clusterTrace(clusters.size, budgets), line([0, largest], [0, largest], "solid"), line([0, largest], [0, share * largest], "dash")],
        layout: { ...selectable, xaxis: { title: axisTitle("samples"), rangemode: "tozero" }, yaxis: { title: axisTitle("budget"), range: [-0.03 * Math.max(...budgets), 1.06 * Math.max(...budgets)] } },
      };
    });
  } else byId("clusters-budgets").parentNode.remove();
  const drawnShares = () => { // a share far below all others is drawn eight powers of ten below the largest
    const floor = 1e-8 * Math.max(...clusters.share);
    return clusters.share.map((share) => Math.max(share, floor));
  };
  function shareTicks() { // powers of ten, and 2 and 5 in between where the shares span little
    const shares = drawnShares().concat(1 / clusterCount);
    const low = Math.log10(Math.min(...shares)), high = Math.log10(Math.max(...shares));
    const every = Math.max(1, Math.ceil((high - low) / 6));
    const factors = high - low < 2.5 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
      if (factors.length > 1 || power % every === 0) for (const factor of factors) ticks.push(Number(`${factor}e${power}`));
    }
    const text = (tick) => (tick >= 1e-6 ? `${Number((100 * tick).toPrecision(1))}%` : `10<sup>${Math.round(Math.log10(tick)) + 2}</sup>%`);
    return { tickvals: ticks, ticktext: ticks.map(text), range: [low - 0.08 * (high - low) - 0.05, high + 0.08 * (high - low) + 0.05] };
  }
  plots.set("clusters-shares", () => ({
    traces: [clusterTrace(clusters.rank, drawnShares())],
    layout: { ...selectable, xaxis: { title: axisTitle("rank by share") }, yaxis: { type: "log", title: axisTitle("share"), ...shareTicks() }, shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1 / clusterCount, y1: 1 / clusterCount, line: { color: style("--soft"), width: 1, dash: "dash" } }] },
  }));
  byId("clusters-fraction")?.addEventListener("change", () => { draw("clusters-budgets"); pinCluster(state.pinned); });
  byId("cluster-number").addEventListener("change", (event) => pinCluster(event.target.value === "" ? null : Number(event.target.value)));
  byId("cluster-clear").addEventListener("click", () => pinCluster(null));
  const step = (by) => () => { // clusters are in the order of their share
    const row = rowOfCluster.get(state.pinned);
    const next = row === undefined ? 0 : (row + by + clusters.cluster.length) % clusters.cluster.length;
    pinCluster(clusters.cluster[next]);
  };
  byId("cluster-next").addEventListener("click", step(1));
  byId("cluster-previous").addEventListener("click", step(-1));

  // --- map -----------------------------------------------------------------------------------------

  function mapGroups() {
    const colour = byId("map-colour").value;
    if (colour === "source") {
      const sources = data.sources.slice(0, MAX_COLOURS).map((name, i) => ({ name: plain(shorten(name)), color: PALETTE[i], has: (sample) => samples.source[sample] === i }));
      const others = { name: `${data.sources.length - MAX_COLOURS} others`, color: OTHER, has: (sample) => samples.source[sample] >= MAX_COLOURS };
      return data.sources.length > MAX_COLOURS ? [...sources, others] : sources;
    }
    if (colour === "cluster") return [{ name: "clusters", has: () => true, color: (sample) => PALETTE[samples.cluster[sample] % MAX_COLOURS] }];
    const kept = keptBy[Number(colour)];
    return [{ name: "not kept", color: OTHER, opacity: 0.45, has: (sample) => !kept.has(sample) }, { name: "kept", color: PALETTE[0], has: (sample) => kept.has(sample) }];
  }
  plots.set("map-plot", () => {
    const positions = samples[byId("map-layout").value];
    const all = Array.from({ length: mapped }, (_, sample) => sample);
    const traces = mapGroups().map((group) => {
      const own = all.filter(group.has);
      const chosen = state.marked === null ? undefined : own.flatMap((sample, i) => (state.marked.has(samples.cluster[sample]) ? [i] : []));
      return {
        type: "scatter", mode: "markers", name: group.name, x: own.map((sample) => positions[2 * sample]), y: own.map((sample) => positions[2 * sample + 1]), customdata: own, hoverinfo: "none",
        marker: { size: isNarrow() ? 5 : 7, color: typeof group.color === "function" ? own.map(group.color) : group.color, opacity: group.opacity ?? 0.85, line: { width: 0.4, color: style("--sheet") } }, ...faded, selectedpoints: chosen,
      };
    });
    const blank = { showticklabels: false, ticks: "", zeroline: false };
    if (state.sample >= 0) traces.push({ type: "scatter", mode: "markers", x: [positions[2 * state.sample]], y: [positions[2 * state.sample + 1]], hoverinfo: "skip", showlegend: false, marker: { size: 18, symbol: "circle-open", color: style("--ink"), line: { width: 2.5 } } });
    return { traces, layout: { height: isNarrow() ? 480 : 600, dragmode: isNarrow() ? false : "zoom", showlegend: traces.length > 1 && byId("map-colour").value !== "cluster", legend: { orientation: "h", y: 0, yanchor: "top", itemsizing: "constant" }, xaxis: blank, yaxis: { ...blank, scaleanchor: "x" }, margin: { l: 6, r: 6, t: 6, b: 6 } } };
  });
  byId("map-colour").addEventListener("change", () => draw("map-plot"));
  byId("map-layout").addEventListener("change", () => draw("map-plot"));
  function showSample(sample) {
    state.sample = sample;
    byId("map-panel").replaceChildren(element("div", { className: "samples" }, sampleCard(sample)));
    draw("map-plot");
  }
  byId("map-next").addEventListener("click", () => showSample((state.sample + 1) % mapped));
  byId("map-previous").addEventListener("click", () => showSample((Math.max(state.sample, 0) - 1 + mapped) % mapped));

  plots.set("similarity-plot", () => {
    const { cluster, percent: z } = data.similarity;
    const labels = cluster.map((number) => `${number}`);
    const values = z.flat();
    const names = labels.length <= 40 ? {} : { showticklabels: false, ticks: "" };
    return {
      traces: [{ type: "heatmap", z, x: labels, y: labels, zmin: Math.min(...values), zmax: 100, colorscale: STEPS, hovertemplate: "clusters %{y} and %{x}: %{z}%<extra></extra>", colorbar: { thickness: 12, ticksuffix: "%", outlinewidth: 0 } }],
      layout: { height: isNarrow() ? 360 : 560, xaxis: { ...fixed, type: "category", ...names, title: axisTitle("cluster") }, yaxis: { ...fixed, type: "category", ...names, autorange: "reversed", title: axisTitle("cluster") } },
    };
  });

  function listen(node) {
    if (CLUSTER_PLOTS.includes(node.id)) {
      node.on("plotly_hover", ({ event, points }) => clusterCard(event, points[0].customdata));
      node.on("plotly_unhover", hideCard);
      node.on("plotly_click", ({ points }) => { hideCard(); pinCluster(points[0].customdata); });
      node.on("plotly_selected", (event) => {
        if (!event?.points?.length) return;
        state.marked = new Set(event.points.map((point) => point.customdata));
        Plotly.relayout(node, { selections: [] }).then(markClusters);
      });
      node.on("plotly_doubleclick", () => pinCluster(null));
    }
    if (node.id === "map-plot") {
      node.on("plotly_hover", ({ event, points }) => showCard(event, sampleCard(points[0].customdata)));
      node.on("plotly_unhover", hideCard);
      node.on("plotly_click", ({ points }) => { hideCard(); showSample(points[0].customdata); });
    }
  }
  for (const event of ["wheel", "touchmove", "keydown"]) window.addEventListener(event, hideCard, { passive: true });

  // --- theme, copying, printing --------------------------------------------------------------------

  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = (() => { try { return localStorage.getItem("coincide-theme"); } catch { return null; } })();
  if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const nameButton = () => { byId("theme").textContent = isDark() ? "Light" : "Dark"; };
  function redraw() {
    nameButton();
    for (const id of plots.keys()) if (byId(id).dataset.drawn) draw(id);
  }
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("coincide-theme", document.documentElement.dataset.theme); } catch { /* not remembered from a file share */ }
    redraw();
  });
  system.addEventListener("change", redraw);
  let before;
  window.addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; document.documentElement.dataset.theme = "light"; redraw(); });
  window.addEventListener("afterprint", () => { if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme; redraw(); });
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = byId(button.dataset.copy);
      try { await navigator.clipboard.writeText(text.textContent); } catch { // pages opened from a file may have no clipboard
        const range = document.createRange();
        range.selectNodeContents(text);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  nameButton();
  requestAnimationFrame(() => setTimeout(drawAll)); // after the first paint
})();
