// Panels "Tile" and "Most and least": one tile's numbers and pictures, and the tiles at both ends.
import { element, getJSON, slideURL } from "./common.js";
import { choices } from "./layers.js";

const L = window.L;
const SIDES = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
const ENDS = 10;

/** A number with a few digits, as 1e-6 where it would be a row of zeros. */
function short(value, digits = 3) {
  const small = value !== 0 && Math.abs(value) < 1e-3;
  return small ? value.toExponential(digits - 1) : String(+value.toPrecision(digits));
}
const px = (value) => (Math.round(value * 100) / 100).toLocaleString("en");
const percent = (value) => `${short(100 * value)} %`;
const signed = (value) => (value > 0 ? "+" : "") + short(value);

/** Terms and their values as a list, with the exact ones to point at; without a value, no term. */
function terms(rows) {
  return element("dl", { class: "facts" }, ...rows.filter(([, value]) => value).flatMap(
    ([name, value, exact]) => [element("dt", {}, name),
      element("dd", exact === undefined ? {} : { title: String(exact), "data-value": exact }, value)]));
}

function attended(tile) {
  if (tile.attention === null) return [["Attention", `none: ${tile.note}`]];
  const { classes } = tile;
  return [
    ["Attention", `${short(tile.attention, 5)}, \u00d7${short(tile.times_uniform)} of even attention`,
      tile.attention],
    ["Rank", `${tile.rank.toLocaleString("en")} of ${tile.tiles.toLocaleString("en")}, `
      + `percentile ${short(tile.percentile)}`],
    ...Object.entries(classes.attention ?? {}).map(([name, value]) =>
      [`Attention, ${name}`, `${short(value, 5)}, \u00d7${short(value * tile.tiles)}`, value]),
    ...Object.entries(classes.contribution ?? {}).map(([name, value]) =>
      [`Contribution to ${name}`, signed(value), value]),
    ["Note", tile.note],
  ];
}

function quality(tile) {
  const found = tile.quality.map(({ title, value, limit, measured }) => {
    const where = measured === false ? ", measured on a neighbour" : "";
    return [`QC: ${title}`, value === null ? "not known" : `${short(value)} (at most ${limit}${where})`];
  });
  return [["Tissue", tile.tissue === null ? null : percent(tile.tissue)],
    ["In annotated regions", tile.annotated == null ? null : percent(tile.annotated)],
    ...found, ["QC", tile.quality_note]];
}

function pictures(tile) {
  const [left, top, right, bottom] = tile.box_px;
  const { mpp, px: side } = tile.target;
  const at = mpp ? ` at ${short(mpp, 4)} \u00b5m/px` : "";
  const figure = (source, words, alt) => {
    const image = element("img", { src: source, alt, onerror: () => image.replaceWith(
      element("p", { class: "muted" }, "cannot be read from the slide's file")) });
    return element("figure", {}, image, element("figcaption", {}, words));
  };
  return element("div", { class: "tile-pictures" },
    figure(tile.picture, `${px(right - left)} x ${px(bottom - top)} px of the slide`,
      `Tile ${tile.index} at full resolution`),
    figure(tile.seen, `${side} x ${side} px${at}, as the encoder saw it`,
      `Tile ${tile.index} as the encoder saw it`));
}

export async function attach(pane) {
  const body = pane.addSection("Tile");
  const hint = "Click on a tile, or press Enter on the slide for the one in the centre. The arrow keys "
    + "then go from tile to tile, until you press Escape.";
  const live = element("p", { class: "visually-hidden", role: "status" });
  const content = element("div", { class: "tile", "data-tile": "" });
  body.append(live, content);
  const frame = L.layerGroup().addTo(pane.map);
  let chosen = null, turn = 0;

  /** Tell the other panels; one that comes later finds the tile at the pane. */
  function announce(tile) {
    pane.tile = tile;
    pane.emit("tile", tile);
  }

  function empty(words) {
    chosen = null;
    frame.clearLayers();
    content.dataset.tile = "";
    content.replaceChildren(element("p", { class: "muted" }, words));
    pane.state.set({ tile: null });
    announce(null);
  }

  function show(tile) {
    chosen = tile;
    const [left, top, right, bottom] = tile.box_px;
    frame.clearLayers();
    for (const [color, weight] of [["#000", 5], ["#ffe14d", 2.5]]) {
      L.rectangle(pane.toBounds(tile.box_px), { color, weight, fill: false, interactive: false })
        .addTo(frame);
    }
    content.dataset.tile = tile.index;
    content.replaceChildren(
      pictures(tile),
      terms([
        ["Tile", `${tile.index} of ${tile.encoder} (${tile.tiles.toLocaleString("en")} tiles)`],
        ...attended(tile),
        ...quality(tile),
        ["Place", `x ${px(left)}\u2013${px(right)}, y ${px(top)}\u2013${px(bottom)} px, level 0`],
        ["Size", `${short(tile.um[0], 4)} x ${short(tile.um[1], 4)} \u00b5m`],
      ]),
      element("button", { type: "button", onclick: () => fly(tile) }, "Show it large"),
    );
    live.textContent = tile.attention === null ? `Tile ${tile.index}`
      : `Tile ${tile.index}, attention rank ${tile.rank} of ${tile.tiles}`;
    pane.state.set({ tile: tile.index });
    announce(tile);
  }

  async function ask(values) {
    const mine = turn += 1;
    const query = choices(pane);
    for (const [name, value] of Object.entries(values)) query.set(name, value);
    let answer;
    try {
      answer = await getJSON(`${slideURL("/api", pane.cohort, pane.slideId, "tile")}?${query}`);
    } catch (error) {
      if (mine === turn) {
        empty(error.message);
        live.textContent = error.message;
      }
      return null;
    }
    if (mine !== turn) return null;
    if (answer.index !== null) show(answer);
    else if (values.to) live.textContent = `${answer.words}.`;
    else {
      empty(answer.words);
      live.textContent = answer.words;
    }
    return answer.index === null ? null : answer;
  }

  const centre = ([left, top, right, bottom]) => ({ x: (left + right) / 2, y: (top + bottom) / 2 });

  /** As large as fits, up to full resolution. */
  function fly({ box_px }) {
    const zoom = pane.map.getBoundsZoom(pane.toBounds(box_px)) - 1;
    pane.show(centre(box_px), Math.min(0, zoom));
  }

  pane.addEventListener("pick", (event) => ask(event.detail));
  pane.addEventListener("choice", () => { if (chosen) ask(centre(chosen.box_px)); });
  pane.addEventListener("escape", () => { if (chosen) empty(hint); });
  pane.canvas.addEventListener("keydown", async (event) => {
    if (!chosen || !(event.key in SIDES) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const tile = await ask({ index: chosen.index, to: SIDES[event.key] });
    if (tile && !pane.map.getBounds().contains(pane.toBounds(tile.box_px))) pane.show(centre(tile.box_px));
  });
  const asked = pane.state.get("tile");
  content.replaceChildren(element("p", { class: "muted" }, hint));
  if (asked !== null) await ask({ index: asked });
  ends(pane, (tile) => {
    fly(tile);
    ask({ index: tile.index });
  });
}

/** Panel of the tiles with the most and the least; they are asked for when it is opened. */
function ends(pane, go) {
  const body = pane.addSection("Most and least attended tiles", { open: false });
  const details = body.parentElement;
  const by = element("select", { "aria-label": "Listed by", onchange: () => load() },
    element("option", { value: "attention" }, "attention"),
    element("option", { value: "contribution" }, "contribution to the class"));
  const lists = element("div", {});
  body.append(by, lists);
  let turn = 0;

  async function load() {
    const mine = turn += 1;
    by.hidden = !pane.choice?.contributions?.length;
    if (by.hidden) by.value = "attention";
    const query = choices(pane);
    query.set("by", by.value);
    query.set("count", ENDS);
    try {
      const found = await getJSON(`${slideURL("/api", pane.cohort, pane.slideId, "tiles")}?${query}`);
      if (mine !== turn) return;
      if (found.absent) throw new Error(found.absent);
      // Attention as a multiple of even attention, as everywhere.
      const value = (tile) => (by.value === "attention" ? `\u00d7${short(tile.value * pane.choice.tiles, 2)}`
        : signed(tile.value));
      lists.replaceChildren(...list(`Most (${found.words})`, found.most, value),
        ...list("Least", found.least, value));
    } catch (error) {
      if (mine === turn) lists.replaceChildren(element("p", { class: "muted" }, error.message));
    }
  }

  function list(title, tiles, value) {
    return [element("h3", {}, title), element("div", { class: "tile-list" }, ...tiles.map((tile) =>
      element("button", { type: "button", title: `Tile ${tile.index}: ${tile.value}`,
        onclick: () => go(tile) },
      element("img", { src: tile.seen, alt: `Tile ${tile.index}`, loading: "lazy" }),
      element("span", {}, value(tile)))))];
  }

  details.addEventListener("toggle", () => { if (details.open) load(); });
  pane.addEventListener("choice", () => { if (details.open) load(); });
}
