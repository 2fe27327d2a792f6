// Notes: regions and tiles that somebody marked with a class and a remark, and their list.
import { element, getJSON, slideURL } from "./common.js";
import { cornersOf, Drawing, HELP, Outline } from "./note_drawing.js";

const L = window.L;

document.head.append(element("link", { rel: "stylesheet", href: "/static/notes.css" }));

const rgb = (color) => (color ? `rgb(${color.join(" ")})` : "#000");

/** Send a change; unlike `sendJSON`, a refusal is an answer too, since it may say what is there now. */
async function send(address, method, body) {
  try {
    const answer = await fetch(address, { method, headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body) });
    const found = await answer.json().catch(() => ({}));
    return answer.ok ? { found }
      : { error: found.error ?? `${answer.status} ${answer.statusText}`, now: found.now, status: answer.status };
  } catch {
    return { error: "The viewer does not answer; is her2 view still running?" };
  }
}

/** Add the section of notes. */
export async function attach(pane) {
  const section = pane.addSection("Notes");
  section.classList.add("notes");
  const id = (name) => `note-${name}-${pane.number ?? 1}`;
  const address = (note = null) => slideURL("/api", pane.cohort, pane.slideId, "notes",
    ...(note ? [encodeURIComponent(note)] : []));
  const outline = new Outline(pane);
  const drawn = L.layerGroup().addTo(pane.map);
  let tile = null; // the chosen one
  let drawing = null;
  let marked = null; // {corners, tile} that the form describes
  let edited = null; // the note that the form changes
  let seen = ""; // the notes as they were shown last
  let notes = [];

  const live = element("p", { class: "visually-hidden", role: "status" });
  const say = (words) => { live.textContent = words; };
  const button = (words, act, more = {}) =>
    element("button", { type: "button", onclick: act, ...more }, words);
  const markTile = button("Mark this tile", () => mark(cornersOf(tile.box_px), tile),
    { class: "mark-tile", disabled: true });
  const rectangle = button("Draw a rectangle", () => draw("rectangle"), { class: "rectangle" });
  const polygon = button("Draw a polygon", () => draw("polygon"), { class: "polygon" });
  const starts = element("div", { class: "row", role: "group", "aria-label": "Mark a place" }, markTile,
    button("Mark the current view", () => mark(cornersOf(view()), null), { class: "mark-view" }), rectangle, polygon);

  const help = element("p", {});
  const finish = button("Close the polygon", () => drawing?.finish());
  const tools = element("div", { class: "drawing", hidden: true, role: "group", "aria-label": "Drawing" },
    help, element("div", { class: "row" },
      button("Corner at the crosshair", () => drawing?.add()),
      button("Remove the last corner", () => drawing?.back()), finish,
      button("Cancel", () => drawing?.cancel())));
  tools.addEventListener("keydown", (event) => { if (event.key === "Escape") drawing?.cancel(); });

  const suggestions = element("datalist", { id: id("classes") });
  const className = element("input", { id: id("class"), name: "class", required: true, maxlength: "100",
    autocomplete: "off", list: id("classes") });
  const remark = element("textarea", { id: id("remark"), name: "remark", maxlength: "4000" });
  const wrong = element("div", { class: "wrong", role: "alert" });
  const save = element("button", { type: "submit" }, "Save");
  const what = element("strong", { id: id("what") });
  const form = element("form", { hidden: true, "aria-labelledby": id("what"), onsubmit: submit },
    what, element("label", { for: id("class") }, "Class"), className, suggestions,
    element("label", { for: id("remark") }, "Remark"), remark,
    wrong, element("div", { class: "row" }, save, button("Cancel", closeForm)));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    else if (event.key === "Escape") closeForm();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const undo = element("div", { class: "row", hidden: true });
  const problem = element("div", { class: "wrong", role: "alert" });
  const list = element("ol", { "aria-label": "Notes of this slide" });
  const shown = element("input", { type: "checkbox", checked: true, id: id("shown"), onchange: paint });
  const more = element("div", { class: "muted" });
  const download = slideURL("", pane.cohort, pane.slideId, "notes.geojson");
  const links = element("p", { hidden: true },
    element("a", { href: download, download: "" }, "GeoJSON of this slide, for QuPath"), " \u00b7 ",
    element("a", { href: "/notes.zip", download: "" }, "notes of all slides (zip)"));
  section.append(starts, live, tools, form, undo, problem, list,
    element("label", { for: id("shown") }, shown, " Show the notes on the slide"), links, more);

  pane.addEventListener("tile", ({ detail }) => choose(detail));
  if (pane.tile) choose(pane.tile);
  window.addEventListener("focus", () => load());
  await load();

  function choose(detail) {
    tile = detail?.box_px ? detail : null;
    markTile.disabled = !tile;
  }

  /** What is seen of the slide, as a box in level-0 px. */
  function view() {
    const bounds = pane.map.getBounds();
    const [a, b] = [bounds.getNorthWest(), bounds.getSouthEast()].map((one) => pane.toLevel0(one));
    return onSlide([a.x, a.y, b.x, b.y]);
  }

  /** The part of a box that is on the slide. */
  function onSlide([left, top, right, bottom]) {
    const [width, height] = pane.facts.extent_px;
    return [Math.max(0, left), Math.max(0, top), Math.min(width, right), Math.min(height, bottom)];
  }

  function draw(kind) {
    drawing?.cancel();
    const from = kind === "polygon" ? polygon : rectangle;
    from.setAttribute("aria-pressed", "true");
    tools.hidden = false;
    finish.hidden = kind === "rectangle";
    help.textContent = HELP[kind];
    outline.clear();
    drawing = new Drawing(pane, kind, outline, { say, done: (corners) => {
      drawing = null;
      tools.hidden = true;
      from.removeAttribute("aria-pressed");
      if (corners && kind === "rectangle") {
        const [a, , b] = corners;
        mark(cornersOf(onSlide([a.x, a.y, b.x, b.y])), null);
      } else if (corners) mark(corners, null);
      else {
        from.focus();
        if (marked) outline.show(marked.corners, true);
      }
    } });
  }

  /** Ask for the class and the remark of a place. What was written already stays. */
  function mark(corners, ofTile) {
    const [left, right] = [Math.min, Math.max].map((most) => most(...corners.map(({ x }) => x)));
    const [top, bottom] = [Math.min, Math.max].map((most) => most(...corners.map(({ y }) => y)));
    if (!(right > left && bottom > top)) {
      outline.clear();
      say("No part of the slide is there, so there is nothing to mark.");
      return;
    }
    if (edited) closeForm();
    marked = { corners, tile: ofTile };
    outline.show(corners, true);
    openForm(`New note: ${ofTile ? `tile ${ofTile.index}, ` : ""}${Math.round(right - left)} \u00d7 ${
      Math.round(bottom - top)} px at x ${Math.round(left)}, y ${Math.round(top)}`);
  }

  function openForm(words) {
    what.textContent = words;
    wrong.replaceChildren();
    form.hidden = false;
    className.focus();
    className.select();
  }

  function closeForm() {
    const back = edited ? key("edit", edited.id) : null;
    marked = edited = null;
    remark.value = "";
    wrong.replaceChildren();
    form.hidden = true;
    outline.clear();
    (back ? list.querySelector(back) : null)?.focus();
  }

  function edit(note) {
    drawing?.cancel();
    marked = null;
    outline.clear();
    edited = note;
    className.value = note.class;
    remark.value = note.remark;
    openForm("Change the note");
  }

  async function submit(event) {
    event.preventDefault();
    await keep(edited?.revision);
  }

  /** Save what the form has; whatever goes wrong, it stays in the form. */
  async function keep(revision) {
    if (save.disabled) return;
    save.disabled = true;
    const words = { class: className.value, remark: remark.value };
    const answer = edited ? await send(address(edited.id), "PUT", { ...words, revision })
      : await send(address(), "POST", { ...words,
        outline: marked.corners.map(({ x, y }) => [x, y]),
        ...(marked.tile ? { tile: { encoder: marked.tile.encoder, index: marked.tile.index } } : {}) });
    save.disabled = false;
    if (answer.error) {
      refuse(answer);
      return;
    }
    closeForm();
    await load();
    list.querySelector(key("fly", answer.found.id))?.focus();
    say(`Saved: ${titleOf(answer.found)}.`);
  }

  function refuse({ error, now, status }) {
    wrong.replaceChildren(element("p", {}, error));
    if (status !== 409 || now === undefined) {
      wrong.append(element("p", {}, "Nothing was saved; what you wrote is still here."));
    } else if (now) {
      wrong.append(element("p", {}, `It is now \u201c${titleOf(now)}\u201d. Yours is still here.`),
        element("div", { class: "row" },
          button("Save mine instead", () => keep(now.revision)),
          button("Leave it as it is now", () => { closeForm(); load(); })));
    } else {
      const ring = edited.geometry?.type === "Polygon" ? edited.geometry.coordinates[0] : null;
      wrong.append(element("p", {}, "Yours is still here."));
      if (ring) wrong.append(button("Save mine as a new note", () => {
        marked = { corners: ring.map(([x, y]) => ({ x, y })), tile: null };
        edited = null;
        keep();
      }));
    }
  }

  async function remove(note) {
    const answer = await send(address(note.id), "DELETE", { revision: note.revision });
    await load();
    if (answer.error) {
      problem.textContent = answer.error;
      return;
    }
    const again = button("Undo", async () => {
      const restored = await send(address(note.id), "PUT", { restore: true });
      undo.hidden = !restored.error;
      if (restored.error) undo.replaceChildren(element("span", { role: "alert" }, restored.error));
      await load();
      list.querySelector(key("fly", note.id))?.focus();
      if (!restored.error) say(`Restored: ${titleOf(note)}.`);
    });
    undo.replaceChildren(element("span", {}, `Deleted: ${titleOf(note)}`), again);
    undo.hidden = false;
    again.focus();
    say(`Deleted: ${titleOf(note)}.`);
  }

  function titleOf(note) {
    const line = note.remark.split("\n")[0];
    return [note.class || "no class", line.length > 60 ? `${line.slice(0, 60)}\u2026` : line]
      .filter(Boolean).join(": ");
  }

  function boundsOf(note) {
    return L.geoJSON({ type: "Feature", geometry: note.geometry }, { coordsToLatLng }).getBounds();
  }

  function coordsToLatLng([x, y]) { return pane.toLatLng(x, y); }

  function fly(note) {
    pane.map.fitBounds(boundsOf(note), { maxZoom: 0, padding: [40, 40] });
    say(`The slide shows ${titleOf(note)}.`);
  }

  const key = (kind, note) => `[data-key="${CSS.escape(`${kind} ${note}`)}"]`;

  /** Read the notes again, which another window, QuPath or an editor may have changed. */
  async function load() {
    let found;
    try {
      found = await getJSON(address());
    } catch (error) {
      problem.textContent = error.message;
      return;
    }
    const text = JSON.stringify(found);
    if (text === seen) return;
    seen = text;
    ({ notes } = found);
    problem.textContent = found.problem ?? "";
    links.hidden = !notes.length;
    suggestions.replaceChildren(...found.classes.map((value) => element("option", { value })));
    more.textContent = [`Kept in ${found.file}.`, found.caution ?? "",
      found.others ? `It also has ${found.others} objects that QuPath made, such as cells.` : ""].join(" ");
    const focused = document.activeElement?.dataset?.key;
    list.replaceChildren(...notes.map(item));
    if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    paint();
  }

  function item(note) {
    const title = titleOf(note);
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = rgb(note.color);
    const content = [swatch, element("span", { class: "class" }, note.class || "no class"),
      note.tile === null ? null : element("span", { class: "muted" }, ` tile ${note.tile}`),
      note.name ? element("span", { class: "muted" }, ` ${note.name}`) : null,
      note.remark ? element("span", { class: "remark" }, note.remark) : null].filter(Boolean);
    const can = note.geometry !== null;
    return element("li", {},
      element("button", { type: "button", class: "fly", disabled: !can, onclick: () => fly(note),
        "data-key": `fly ${note.id}`, "aria-label": `Show on the slide: ${title}`,
        title: can ? "Show on the slide" : "Its coordinates are not numbers, so it cannot be shown" }, ...content),
      button("Edit", () => edit(note), { "data-key": `edit ${note.id}`, "aria-label": `Edit ${title}` }),
      button("Delete", () => remove(note),
        { "data-key": `delete ${note.id}`, "aria-label": `Delete ${title}` }));
  }

  function paint() {
    drawn.clearLayers();
    if (!shown.checked) return;
    for (const note of notes.filter(({ geometry }) => geometry)) {
      const looks = [{ color: "#ffffff", weight: 5, opacity: 0.85 }, { color: rgb(note.color), weight: 2.5 }];
      for (const look of looks) {
        const own = look === looks[1];
        const layer = L.geoJSON({ type: "Feature", geometry: note.geometry }, { coordsToLatLng,
          interactive: own, style: { ...look, fill: own, fillOpacity: 0.04, bubblingMouseEvents: true },
          pointToLayer: (_, at) => L.circleMarker(at, { radius: 6, ...look }) }).addTo(drawn);
        if (own) layer.bindTooltip(element("div", { class: "note-tooltip" },
          `${note.class}\n${note.remark}`.trim()), { sticky: true });
      }
    }
  }
}
