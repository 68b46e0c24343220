// The cluster browser. Data are scripts that call `coincideBrowser.add`: pages from a folder cannot read files.
// Text of the dataset only ever becomes text nodes and attributes.
"use strict";

const coincideBrowser = (() => {
  const $ = (id) => document.getElementById(id);
  const PACKS_KEPT = 12; // groups of samples or thumbnails in memory, some MB each
  const PREVIEWS_KEPT = 40; // files of previews in memory, half a MB each
  const PREVIEW_DELAY = 120; // milliseconds without scrolling before previews are loaded
  const OVERSCAN = 8; // rows beyond the edges of the window
  const SOURCES_IN_MENU = 1000; // more are found by the search
  const SPEAKERS = { human: "Question", gpt: "Answer", system: "System" };
  const INTEGER = new Intl.NumberFormat("en");
  const SORTS = {
    words: { label: "Words", ascending: true },
    source: { label: "Source", ascending: true },
    size: { label: "Size" },
    kept: { label: "Budget" },
    share: { label: "Share" },
    transferability: { label: "Transferability" },
    density: { label: "Density" },
  };

  // --- data ---------------------------------------------------------------------------------------------------

  let data = null; // clusters.js
  let haystacks = []; // what the search looks through, per cluster
  const packs = new Map(); // name -> promise of a script's data, the last used at the end
  const previews = new Map(); // the same, of previews
  const arrivals = new Map(); // name -> function that receives the data

  function add(name, content) {
    if (name === "clusters") start(content);
    else arrivals.get(name)?.(content);
  }

  function load(name, kept = packs, limit = PACKS_KEPT) {
    let pack = kept.get(name);
    kept.delete(name);
    pack ??= new Promise((resolve, reject) => {
      arrivals.set(name, resolve);
      const script = document.createElement("script");
      script.src = `${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        kept.delete(name);
        script.remove();
        reject(new Error(`${name}.js is missing or cannot be read`));
      };
      document.head.append(script);
    });
    kept.set(name, pack);
    if (kept.size > limit) {
      const oldest = kept.keys().next().value;
      kept.delete(oldest);
      arrivals.delete(oldest);
    }
    return pack;
  }

  // --- helpers ------------------------------------------------------------------------------------------------

  function element(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  const integer = (value) => INTEGER.format(value);
  const decimal = (value) => (value === null ? "–" : value && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(3));
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part / whole < 0.1 ? 1 : 0)}%` : "–");
  const shareOf = (value) => (value === null ? "–" : `${(100 * value).toPrecision(2)}%`);
  const nameOf = (cluster) => data.words[cluster].join(" · ") || `Cluster ${cluster}`;
  const sourcesOf = (cluster) => data.cluster_sources[cluster].map(([source]) => data.sources[source]);
  const keptOf = (cluster) => data.kept[state.coreset][cluster];
  const coresetLabel = ({ method, fraction }) => `${method}, ${100 * fraction}%`;

  // --- state, in the part of the address after # --------------------------------------------------------------

  const state = { query: "", source: "", sort: "share", descending: true, coreset: 0, cluster: null };
  let order = []; // clusters of the list, filtered and sorted
  let listScroll = 0;

  function readAddress() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    const values = new URLSearchParams(query);
    const cluster = /^cluster\/(\d+)$/.exec(path);
    state.cluster = cluster && Number(cluster[1]) < data.size.length ? Number(cluster[1]) : null;
    state.query = values.get("q") ?? "";
    state.source = data.sources.includes(values.get("source")) ? values.get("source") : "";
    state.sort = Object.hasOwn(SORTS, values.get("sort")) ? values.get("sort") : "share";
    state.descending = values.has("descending") ? values.get("descending") === "1" : !SORTS[state.sort].ascending;
    const coreset = Number(values.get("coreset") ?? 0);
    state.coreset = Number.isInteger(coreset) && data.coresets[coreset] ? coreset : 0;
  }

  function address(cluster) {
    const values = new URLSearchParams();
    if (state.query) values.set("q", state.query);
    if (state.source) values.set("source", state.source);
    if (state.sort !== "share" || !state.descending) {
      values.set("sort", state.sort);
      values.set("descending", state.descending ? "1" : "0");
    }
    if (state.coreset) values.set("coreset", state.coreset);
    const query = values.toString();
    return `#/${cluster === null ? "" : `cluster/${cluster}`}${query && `?${query}`}`;
  }

  function change(values) {
    Object.assign(state, values);
    history.replaceState(null, "", address(state.cluster));
    show();
  }

  // --- the list -----------------------------------------------------------------------------------------------

  function sortKey(cluster) {
    switch (state.sort) {
      case "words":
        return nameOf(cluster);
      case "source":
        return sourcesOf(cluster)[0] ?? "";
      case "kept":
        return keptOf(cluster);
      default:
        return data[state.sort][cluster] ?? -Infinity;
    }
  }

  function updateOrder() {
    const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const source = state.source ? data.sources.indexOf(state.source) : -1;
    const found = [];
    for (let cluster = 0; cluster < data.size.length; cluster++) {
      if (source >= 0 && !data.cluster_sources[cluster].some(([other]) => other === source)) continue;
      if (terms.every((term) => haystacks[cluster].includes(term))) found.push(cluster);
    }
    const keys = new Map(found.map((cluster) => [cluster, sortKey(cluster)]));
    const collator = new Intl.Collator();
    const isText = SORTS[state.sort].ascending;
    const sign = state.descending ? -1 : 1;
    order = found.sort((a, b) => {
      const difference = isText ? collator.compare(keys.get(a), keys.get(b)) : keys.get(a) - keys.get(b);
      return sign * (difference || 0) || a - b;
    });
  }

  const rows = new Map(); // number in the order -> element
  let rowHeight = 0;

  function makeRow(number) {
    const cluster = order[number];
    const size = data.size[cluster];
    const kept = keptOf(cluster);
    const sources = data.cluster_sources[cluster].slice(0, 3).map(([source, count]) => `${data.sources[source]} ${percent(count, size)}`);
    const cell = (kind, label, ...content) => element("div", { role: "cell", class: kind, "data-label": label }, ...content);
    const bar = element("span", {});
    bar.style.width = `${size ? (100 * kept) / size : 0}%`;
    const row = element(
      "div",
      { class: "row", role: "row", "aria-rowindex": number + 2 },
      element("div", { role: "cell", class: "preview" }, element("img", { alt: "", "data-cluster": cluster })),
      element(
        "div",
        { role: "cell", class: "name" },
        element("a", { href: address(cluster), "data-number": number }, nameOf(cluster)),
        element("div", { class: "of" }, `cluster ${cluster}`, sources.length ? ` · ${sources.join(", ")}` : ""),
      ),
      cell("", "size", integer(size)),
      cell("kept-cell", "kept", element("span", {}, `${integer(kept)} `, element("span", { class: "percent" }, percent(kept, size))), element("span", { class: "meter" }, bar)),
      cell("", "share", shareOf(data.share[cluster])),
      cell("wide", "transferability", decimal(data.transferability[cluster])),
      cell("wide", "density", decimal(data.density[cluster])),
    );
    row.style.transform = `translateY(${number * rowHeight}px)`;
    return row;
  }

  // Only the rows near the window exist.
  function updateRows(previewDelay = PREVIEW_DELAY) {
    const top = -$("rows").getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / rowHeight) - OVERSCAN);
    const last = Math.min(order.length - 1, Math.ceil((top + innerHeight) / rowHeight) + OVERSCAN);
    for (const [number, row] of rows) {
      if ((number < first || number > last) && !row.contains(document.activeElement)) {
        row.remove();
        rows.delete(number);
      }
    }
    const added = [];
    for (let number = first; number <= last; number++) {
      if (!rows.has(number)) {
        rows.set(number, makeRow(number));
        added.push(rows.get(number));
      }
    }
    $("rows").append(...added);
    clearTimeout(previewTimer);
    previewTimer = setTimeout(showPreviews, previewDelay);
  }

  let previewTimer = 0;

  function showPreviews() {
    if (!$("columns").firstChild.offsetWidth) return; // a narrow window has no previews
    for (const row of rows.values()) {
      const image = row.querySelector(".preview img:not([src])");
      if (!image) continue;
      const place = data.preview[image.dataset.cluster];
      const file = String(Math.floor(place / data.previews_per_file)).padStart(3, "0");
      load(`previews/${file}`, previews, PREVIEWS_KEPT).then(
        (strips) => {
          const strip = strips[place % data.previews_per_file];
          if (strip) image.src = `data:image/webp;base64,${strip}`;
        },
        () => {}, // the list is complete without its previews
      );
    }
  }

  function showList() {
    rowHeight = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    updateOrder();
    for (const row of rows.values()) row.remove();
    rows.clear();
    $("rows").style.height = `${order.length * rowHeight}px`;
    $("table").setAttribute("aria-rowcount", order.length + 1);
    $("table").hidden = !order.length;
    $("nothing").hidden = order.length > 0;
    const all = data.size.length;
    $("count").textContent = order.length === all ? `${integer(all)} clusters` : `${integer(order.length)} of ${integer(all)} clusters`;
    const keptLabel = data.coresets[state.coreset].method === "coincide" ? "Budget" : "Kept";
    for (const named of document.querySelectorAll("#columns [data-sort=kept], #sort [value=kept]")) named.textContent = keptLabel;
    for (const button of $("columns").querySelectorAll("button")) {
      const isSorted = button.dataset.sort === state.sort;
      const direction = state.descending ? "descending" : "ascending";
      if (isSorted) button.dataset.sorted = direction;
      else delete button.dataset.sorted;
    }
    for (const header of $("columns").children) {
      const sorted = header.querySelector("[data-sorted]");
      header.setAttribute("aria-sort", sorted ? sorted.dataset.sorted : "none");
    }
    if ($("search").value !== state.query) $("search").value = state.query;
    $("source").value = state.source;
    $("sort").value = state.sort;
    $("direction").textContent = state.descending ? "↓" : "↑";
    updateRows(0);
  }

  function sortBy(sort) {
    const descending = state.sort === sort ? !state.descending : !SORTS[sort].ascending;
    change({ sort, descending });
  }

  function focusRow(number) {
    if (number < 0 || number >= order.length) return;
    const top = $("rows").getBoundingClientRect().top + scrollY + number * rowHeight;
    const covered = $("controls").offsetHeight + $("columns").offsetHeight;
    if (top < scrollY + covered) scrollTo(0, top - covered);
    else if (top + rowHeight > scrollY + innerHeight) scrollTo(0, top + rowHeight - innerHeight);
    updateRows();
    rows.get(number).querySelector("a").focus({ preventScroll: true });
  }

  // --- the page of a cluster ----------------------------------------------------------------------------------

  let filter = "all";

  async function showCluster() {
    const cluster = state.cluster;
    const group = String(data.group[cluster]).padStart(4, "0");
    const page = $("page");
    const place = order.indexOf(cluster);
    const neighbour = (number, label, title) => {
      const other = place < 0 ? undefined : order[number];
      return element("a", { href: other === undefined ? null : address(other), "aria-disabled": other === undefined ? "true" : null, title }, label);
    };
    const figure = (label, value) => element("div", {}, element("dt", {}, label), element("dd", {}, value));
    const size = data.size[cluster];
    const kept = keptOf(cluster);
    const body = element("div", {}, element("p", { class: "lead" }, "Loading…"));
    page.replaceChildren(
      element(
        "nav",
        { "aria-label": "Clusters" },
        element("a", { href: address(null), id: "back" }, "← All clusters"),
        neighbour(place - 1, "← Previous", "previous cluster of the list"),
        neighbour(place + 1, "Next →", "next cluster of the list"),
      ),
      element("h2", {}, nameOf(cluster)),
      element("p", { class: "lead" }, `Cluster ${cluster}. The name is suggested: words that are more frequent here than in other clusters.`),
      element(
        "dl",
        { class: "numbers" },
        figure("samples", integer(size)),
        figure(`kept (${coresetLabel(data.coresets[state.coreset])})`, `${integer(kept)} (${percent(kept, size)})`),
        figure("share", shareOf(data.share[cluster])),
        figure("transferability", decimal(data.transferability[cluster])),
        figure("density", decimal(data.density[cluster])),
      ),
      body,
    );
    document.title = `${nameOf(cluster)} – ${data.run}`;
    try {
      const pages = await load(`samples/${group}`);
      if (state.cluster !== cluster) return;
      const found = pages.find((other) => other.cluster === cluster);
      body.replaceChildren(panels(found, size), ...members(found, size, group));
    } catch (error) {
      if (state.cluster === cluster) body.replaceChildren(element("p", { class: "fault", role: "alert" }, `${error.message}. Copy the whole folder of the browser.`));
    }
  }

  function panels(page, size) {
    const nearest = page.nearest.map(([other, cosine]) =>
      element("li", {}, element("a", { href: address(other), title: nameOf(other) }, nameOf(other)), element("span", { class: "quiet" }, `cosine ${cosine.toFixed(3)}`)),
    );
    const sources = page.sources.map(([source, count, kept]) =>
      element("li", {}, element("span", { title: data.sources[source] }, data.sources[source]), element("span", { class: "quiet" }, `${integer(count)} (${percent(count, size)})${state.coreset ? "" : `, ${integer(kept)} kept`}`)),
    );
    const panel = (title, lines, nothing) => element("section", { class: "panel" }, element("h3", {}, title), lines.length ? element("ul", { class: "lines" }, ...lines) : element("p", { class: "lead" }, nothing));
    return element("div", { class: "panels" }, panel("Nearest clusters", nearest, "None."), panel("Sources", sources, "None."));
  }

  function members(page, size, group) {
    const pickOf = (member) => member.picks.find(([coreset]) => coreset === state.coreset);
    const list = element("ul", { id: "members" });
    const status = element("span", { role: "status" });
    const sorted = page.members.map((member) => [member, pickOf(member)]);
    sorted.sort(([a, p], [b, q]) => (p && q ? p[1] - q[1] : p ? -1 : q ? 1 : b.similarity - a.similarity));
    const images = load(`images/${group}`);
    images.catch(() => {}); // reported below, where they are shown
    const buttons = ["all", "kept", "not kept"].map((choice) => element("button", { type: "button", onclick: () => ((filter = choice), fill()) }, choice));
    function fill() {
      const shown = sorted.filter(([, pick]) => filter === "all" || Boolean(pick) === (filter === "kept"));
      for (const button of buttons) button.setAttribute("aria-pressed", button.textContent === filter);
      const rest = page.members.length < size ? ` (the page has ${integer(page.members.length)} of ${integer(size)}: kept ones first, others from the most similar to the least)` : "";
      status.textContent = `${integer(shown.length)} ${shown.length === 1 ? "sample" : "samples"}${rest}`;
      list.replaceChildren(...shown.map(([member, pick]) => card(member, pick, images)));
      shortenCards(list);
    }
    fill();
    const toolbar = element("div", { class: "toolbar" }, element("h3", {}, "Samples"), element("span", { class: "choice", role: "group", "aria-label": "Samples shown" }, ...buttons), status);
    requestAnimationFrame(() => shortenCards(list));
    return [toolbar, list];
  }

  function card(member, pick, images) {
    const badge = pick ? element("b", {}, `kept, pick ${integer(pick[1])}`) : element("span", {}, "not kept");
    const pictures = member.images.map((number) => picture(number, images));
    if (member.more_images) pictures.push(element("span", {}, `+ ${member.more_images} more`));
    const turns = member.turns.map(([speaker, text]) => element("p", { class: `turn ${Object.hasOwn(SPEAKERS, speaker) ? speaker : "other"}` }, element("b", {}, Object.hasOwn(SPEAKERS, speaker) ? SPEAKERS[speaker] : speaker), text));
    if (member.cut) turns.push(element("p", { class: "turn fault" }, `… ${integer(member.cut)} more characters in the dataset`));
    const rank = pick ? ` · rank ${integer(pick[2] + 1)} of the coreset` : "";
    return element(
      "li",
      { class: `member${pick ? " kept" : ""}` },
      element("div", { class: "badge" }, badge, element("span", {}, `similarity ${member.similarity.toFixed(3)}`)),
      pictures.length ? element("div", { class: "pictures" }, ...pictures) : null,
      element("div", { class: "turns" }, ...turns),
      element("div", { class: "origin" }, `${member.id} · ${data.sources[member.source]}${rank}`),
    );
  }

  function picture(number, images) {
    const image = element("img", { alt: "", loading: "lazy", decoding: "async" });
    const fault = (text) => image.replaceWith(element("span", {}, text));
    images.then(
      (thumbnails) => (thumbnails[number] ? (image.src = `data:image/webp;base64,${thumbnails[number]}`) : fault("image cannot be opened")),
      () => fault("images are missing"),
    );
    return image;
  }

  // Long conversations get a button that shows the rest.
  function shortenCards(list) {
    for (const turns of list.querySelectorAll(".turns:not([data-measured])")) {
      if (!turns.isConnected) return;
      turns.dataset.measured = "";
      if (turns.textContent.length < 330 && turns.querySelectorAll(".turn").length < 5) continue;
      turns.classList.add("short");
      const button = element("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => {
        const isShort = turns.classList.toggle("short");
        button.textContent = isShort ? "Show all" : "Show less";
        button.setAttribute("aria-expanded", !isShort);
      } }, "Show all");
      turns.after(button);
    }
  }

  // --- start and events ---------------------------------------------------------------------------------------

  function show() {
    const isList = state.cluster === null;
    $("list").hidden = !isList;
    $("page").hidden = isList;
    $("coreset").value = state.coreset;
    const kept = data.coresets[state.coreset].kept;
    $("facts").textContent = `${integer(data.samples)} samples in ${integer(data.size.length)} clusters; ${integer(kept)} kept`;
    if (isList) {
      document.title = `Clusters – ${data.run}`;
      showList();
    } else {
      updateOrder();
      showCluster();
    }
  }

  function navigate() {
    const before = state.cluster;
    readAddress();
    show();
    if (state.cluster !== null) {
      if (before !== state.cluster) filter = "all";
      scrollTo(0, 0);
      $("page").focus({ preventScroll: true });
    } else if (before !== null) {
      scrollTo(0, listScroll);
      updateRows();
      const number = order.indexOf(before);
      if (rows.has(number)) rows.get(number).querySelector("a").focus({ preventScroll: true });
    }
  }

  function start(content) {
    data = content;
    data.sources = data.sources.map((name) => name || "(no name)");
    haystacks = data.size.map((_, cluster) => [data.words[cluster].join(" "), ...sourcesOf(cluster), `cluster ${cluster}`, `#${cluster}`].join("\n").toLowerCase());
    $("run").textContent = data.run;
    $("coreset").append(...data.coresets.map((coreset, i) => element("option", { value: i }, coresetLabel(coreset))));
    $("coreset-field").hidden = data.coresets.length < 2;
    const named = [...data.sources].sort(new Intl.Collator().compare);
    const hasMenu = named.length > 1 && named.length <= SOURCES_IN_MENU;
    if (hasMenu) $("source").append(element("option", { value: "" }, "All sources"), ...named.map((name) => element("option", { value: name }, name)));
    $("source").hidden = !hasMenu;
    $("sort").append(...Object.entries(SORTS).map(([sort, { label }]) => element("option", { value: sort }, label)));
    const button = (sort) => element("button", { type: "button", "data-sort": sort, onclick: () => sortBy(sort) }, SORTS[sort].label);
    $("columns").append(
      element("div", { role: "columnheader", class: "preview" }, element("span", { class: "hidden" }, "Images")),
      element("div", { role: "columnheader" }, button("words"), button("source")),
      ...["size", "kept", "share", "transferability", "density"].map((sort) => element("div", { role: "columnheader" }, button(sort))),
    );
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("search").addEventListener("input", () => (scrollTo(0, 0), change({ query: $("search").value })));
    $("source").addEventListener("change", () => (scrollTo(0, 0), change({ source: $("source").value })));
    $("sort").addEventListener("change", () => change({ sort: $("sort").value, descending: !SORTS[$("sort").value].ascending }));
    $("direction").addEventListener("click", () => change({ descending: !state.descending }));
    $("coreset").addEventListener("change", () => change({ coreset: Number($("coreset").value) }));
    addEventListener("hashchange", navigate);
    let isScheduled = false;
    addEventListener("scroll", () => {
      if (state.cluster !== null) return;
      listScroll = scrollY;
      if (isScheduled) return;
      isScheduled = true;
      requestAnimationFrame(() => {
        isScheduled = false;
        if (state.cluster === null) updateRows();
      });
    }, { passive: true });
    addEventListener("resize", () => state.cluster === null && showList());
    addEventListener("keydown", onKey);
    readAddress();
    show();
    performance.mark("shown"); // bench/browser.py reads it
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isInField = event.target.matches("input, select, textarea");
    if (state.cluster !== null) {
      if (isInField) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const other = order[order.indexOf(state.cluster) + step];
      if (event.key === "Escape") location.hash = address(null);
      else if (step && other !== undefined) location.hash = address(other);
      return;
    }
    if (event.key === "/" && !isInField) {
      event.preventDefault();
      $("search").focus();
      return;
    }
    if (isInField && event.target !== $("search")) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const number = document.activeElement.dataset.number;
    if (number === undefined && step < 0) return;
    event.preventDefault();
    if (number === "0" && step < 0) $("search").focus();
    else focusRow(number === undefined ? 0 : Number(number) + step);
  }

  return { add };
})();
