// Where else a look occurs: the tiles of all cohorts most similar to the chosen one, and their scores.
import { element, getJSON, sendJSON, slideURL } from "./common.js";

document.head.append(element("link", { rel: "stylesheet", href: "/static/similar.css" }));

const BUILDING_MS = 400;
const SEARCHING_MS = 700;
/** Who goes from tile to tile by keys is looking for one, and not at each. */
const FOLLOWING_MS = 250;
const CHOOSE = "Choose a tile on the slide to find tiles that look like it, and their scores.";
const count = (number) => number.toLocaleString("en");
const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
const share = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "");
const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Add the section of similar tiles, which follows the chosen tile once somebody has asked. */
export function attach(pane) {
  const section = pane.addSection("Similar tiles");
  section.classList.add("similar");
  let tile = null; // the chosen one
  let turn = 0; // answers to earlier questions are dropped
  let running = null; // address of a search of all tiles
  let finished = null; // address of one whose results are shown
  let begun = 0; // when the progress began to show
  let follows = false;

  const words = element("p", { class: "muted asked" }, CHOOSE);
  const find = element("button", { type: "button", class: "find", disabled: true, onclick: () => ask() },
    "Find similar tiles");
  const bar = element("progress", { "aria-label": "Progress of the search" });
  const far = element("span", { class: "muted" });
  const cancel = element("button", { type: "button", onclick: () => stop("The search was cancelled.") },
    "Cancel");
  const progress = element("div", { class: "row", hidden: true }, bar, far, cancel);
  const live = element("p", { class: "visually-hidden", role: "status" });
  const say = (words) => { live.textContent = words; };
  const results = element("div", { role: "region", "aria-label": "Similar tiles found" });
  section.append(words, find, live, progress, results);

  pane.addEventListener("tile", ({ detail }) => choose(detail));
  pane.addEventListener("model", () => { if (results.firstChild) again(); });
  if (pane.tile) choose(pane.tile);

  function choose(detail) {
    const found = detail && Number.isInteger(detail.index) && detail.encoder ? detail : null;
    if (found && tile && found.index === tile.index && found.encoder === tile.encoder) return;
    stop();
    tile = found;
    find.disabled = !tile;
    results.replaceChildren();
    words.replaceChildren(...(tile ? [own(), `Tile ${tile.index}, compared by the embeddings of ${
      tile.encoder}.`] : [CHOOSE]));
    if (tile && follows) ask(FOLLOWING_MS);
  }

  /** The chosen tile's picture, to compare the others with. */
  function own() {
    return element("img", { alt: "", onerror: (event) => event.target.remove(),
      src: slideURL("", pane.cohort, pane.slideId, "tiles", encodeURIComponent(tile.encoder),
        `${tile.index}.png`) });
  }

  function show(done, of, what) {
    if (progress.hidden) begun = performance.now();
    progress.hidden = false;
    bar.max = of || 1;
    bar.value = done;
    const seconds = (performance.now() - begun) / 1000;
    const left = done && seconds > 5 ? (seconds * (of - done)) / done : 0;
    const how = `: ${count(done)} of ${plural(of, "slide")}`;
    far.textContent = what + (of ? how : "")
      + (left > 90 ? `, about ${Math.round(left / 60)} min left` : "");
  }

  function hide() {
    if (document.activeElement === cancel) find.focus();
    progress.hidden = true;
  }

  /** End what is going on: later answers of it are dropped. */
  function stop(said = null) {
    turn += 1;
    hide();
    if (running) sendJSON(running, "DELETE").catch(() => {});
    running = finished = null;
    if (said) say(said);
  }

  function fail(error) {
    hide();
    running = null;
    results.replaceChildren(element("p", { role: "alert" }, error.message));
  }

  const question = () => ({ encoder: tile.encoder, tile: tile.index,
    ...(pane.model ? { model: pane.model } : {}) });

  /** Ask the sample, which the server reads first. */
  async function ask(wait = 0) {
    if (!tile) return;
    stop();
    follows = true;
    const mine = turn;
    if (wait) await later(wait);
    if (mine !== turn) return;
    const address = `${slideURL("/api", pane.cohort, pane.slideId, "similar")}?${
      new URLSearchParams(question())}`;
    try {
      for (;;) {
        const found = await getJSON(address);
        if (mine !== turn) return;
        if (found.state === "done") return present(found);
        show(found.done, found.of, "Reading a sample of each slide's tiles, once");
        await later(BUILDING_MS);
        if (mine !== turn) return;
      }
    } catch (error) {
      if (mine === turn) fail(error);
    }
  }

  /** The same tiles with the predictions of another model. */
  async function again() {
    if (!finished || !pane.model) return ask();
    const mine = turn;
    try {
      const found = await getJSON(`${finished}?${new URLSearchParams({ model: pane.model })}`);
      if (mine === turn) present(found);
    } catch { // the server has forgotten it
      if (mine === turn) ask();
    }
  }

  /** Search all tiles; what is found replaces what the sample had. */
  async function askAll() {
    stop();
    const mine = turn;
    show(0, 0, "Searching all tiles");
    cancel.focus();
    try {
      const search = await sendJSON(
        slideURL("/api", pane.cohort, pane.slideId, "similar"), "POST", question());
      if (mine !== turn) {
        sendJSON(search.address, "DELETE").catch(() => {});
        return;
      }
      running = search.address;
      for (let found = search; ; found = await getJSON(search.address)) {
        if (mine !== turn) return;
        if (found.state !== "running") {
          running = null;
          if (found.state === "done") {
            finished = search.address;
            present(found);
          } else { hide(); say("The search was stopped; start it again."); }
          return;
        }
        show(found.done, found.of, "Searching all tiles");
        await later(SEARCHING_MS);
      }
    } catch (error) {
      if (mine === turn) fail(error);
    }
  }

  function present(found) {
    hide();
    const { searched } = found;
    const what = `${plural(searched.tiles, "tile")} of ${plural(searched.slides, "slide")} of ${
      plural(searched.patients, "patient")}`;
    const searchedWords = searched.whole
      ? `Searched: all ${what}.` : `Searched: ${what}, a fixed sample of each slide's tiles.`;
    results.replaceChildren(...[
      element("p", {}, `${searchedWords} Similarity: ${found.similarity} by ${found.encoder}. `,
        element("span", { class: "muted" },
          "What an encoder finds similar may also be the stain or the scanner.")),
      searched.whole ? null : element("p", {}, element("button", { type: "button", class: "all", onclick: askAll },
        `Search all ${count(searched.all_tiles)} tiles`)),
      skippedList(searched),
      scoreTable(found),
      found.others.length ? hitList(found.others, found, "Most similar tiles of other patients")
        : element("p", {}, "No tile of another patient was searched."),
      folded("Same patient, other slides", found.same_patient, found),
      folded("This slide", found.same_slide, found),
    ].filter(Boolean));
    say(`${plural(found.others.length, "similar tile")} of other patients. ${searchedWords}`);
  }

  /** Which scores the hits have, against the patients that were searched. */
  function scoreTable(found) {
    if (!found.scores.length) return element("p", { class: "muted" }, "No score is known.");
    const sum = (name) => found.scores.reduce((total, row) => total + row[name], 0);
    const [hits, all] = [sum("patients"), sum("of_patients")];
    const cell = (part, whole, base) => {
      const line = element("span", { class: base ? "bar base" : "bar", "aria-hidden": "true" });
      line.style.width = share(part, whole).replace(" ", "") || "0";
      return element("td", {}, `${count(part)} (${share(part, whole) || "-"})`, line);
    };
    return element("table", {},
      element("caption", {}, `Scores (${found.label ?? "label"}) of the ${
        plural(found.others.length, "tile")} below, at most ${found.per_patient} of a patient`),
      element("thead", {}, element("tr", {}, ...["Score", "Tiles", "Their patients",
        "Patients searched"].map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...found.scores.map((row) => element("tr", {},
        element("th", { scope: "row" }, row.score ?? "unknown"),
        element("td", {}, count(row.tiles)),
        cell(row.patients, hits, false), cell(row.of_patients, all, true)))));
  }

  function hitList(hits, found, label) {
    return element("ol", { "aria-label": label }, ...hits.map((hit) => element("li", {},
      hit.address ? element("a", { href: hit.address }, picture(hit), element("span", {}, hit.slide_id))
        : element("div", {}, picture(hit), `${hit.slide_id}, not in the manifest any more`),
      element("dl", {}, ...[
        ["similarity", hit.similarity.toFixed(3)],
        ["patient", hit.patient_id],
        ["score", hit.score ?? "unknown"],
        hit.truth === hit.score ? null : ["class", hit.truth ?? "unknown"],
        ["predicted", hit.predicted ?? "not"],
        hit.cohort === pane.cohort ? null : ["cohort", hit.cohort.replace("external:", "")],
      ].filter(Boolean).flatMap(([name, value]) => [
        element("dt", {}, name), element("dd", {}, value)])))));
  }

  function picture(hit) {
    const nothing = (why) => element("span", { class: "nothing" }, why);
    if (!hit.picture) {
      return nothing(hit.box_px ? "no slide file, so no picture"
        : "its features do not say where it is, so there is no picture");
    }
    return element("img", { src: hit.picture, alt: `Tile ${hit.tile} of ${hit.slide_id}`,
      loading: "lazy", decoding: "async",
      onerror: (event) => event.target.replaceWith(nothing("its picture cannot be read")) });
  }

  function folded(title, hits, found) {
    return hits.length ? element("details", {},
      element("summary", {}, `${title} (${count(hits.length)})`), hitList(hits, found, title)) : null;
  }

  function skippedList({ skipped, undefined: without }) {
    const parts = [];
    if (without) parts.push(element("p", { class: "muted" },
      `${plural(without, "tile")} without a direction (zero or not finite) left out.`));
    if (skipped.length) parts.push(element("details", {},
      element("summary", {}, `${plural(skipped.length, "slide")} not searched`),
      element("ul", {}, ...skipped.map((one) => element("li", {},
        `${one.slide ? `${one.slide}: ` : ""}${one.reason}`)))));
    return parts.length ? element("div", {}, ...parts) : null;
  }
}
