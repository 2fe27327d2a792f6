// The page of all slides: what is shown is a view (cohort_view.js) of the slides (cohort_data.js).
import { card, columnsOf, line, linkTo } from "./cohort_card.js";
import { asCSV, Slides } from "./cohort_data.js";
import { Filters } from "./cohort_filters.js";
import { List } from "./cohort_list.js";
import { Thumbnails } from "./cohort_thumbnails.js";
import { isFiltered, queryOf, readView, withoutFilters } from "./cohort_view.js";
import { element, getJSON, say } from "./common.js";

const LEAST_CARD_PX = 232;
const SETTLED_MS = 150; // browsers refuse addresses that change with every key
const KEPT = "her2-view-list"; // read by the page of a slide, for the next and the one before

const [search, model, sort, direction, table, filter, download, clear, count, numbers, help] = [
  "search", "model", "sort", "direction", "view", "filter", "download", "clear", "count", "numbers", "help",
].map((id) => document.getElementById(id));
const panel = document.getElementById("filters"), root = document.getElementById("slides");

const view = readView();
const thumbnails = new Thumbnails();
const filters = new Filters(panel, () => update());
let slides = null, list = null, order = new Uint32Array();

function address() {
  clearTimeout(address.timer);
  const text = queryOf(view);
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

function addressSoon() {
  clearTimeout(address.timer);
  address.timer = setTimeout(address, SETTLED_MS);
}

/** Leave the list to the page of a slide, and the place in it to this page when one comes back. */
function keep() {
  if (!slides) return;
  address();
  const kept = { query: queryOf(view), slides: Array.from(order, (row) => [slides.cohort(row), slides.ids[row]]) };
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(kept));
  } catch { // more than a browser keeps: no list is better than that of another view
    sessionStorage.removeItem(KEPT);
  }
}

function setPlace(place) {
  const row = order[place];
  view.at = row === undefined ? null : [slides.cohort(row), slides.ids[row]];
  addressSoon();
}

function makeList() {
  list?.close();
  const header = view.table ? heading() : null;
  list = new List(root, {
    label: "Slides", least_px: LEAST_CARD_PX, header,
    make: (row) => (view.table ? line(slides, row) : [card(slides, row, thumbnails)]),
    drop: (made) => thumbnails.drop(made),
  });
  list.addEventListener("active", (event) => setPlace(event.detail.place));
  list.addEventListener("leave", (event) => { setPlace(event.detail.place); keep(); });
  list.addEventListener("open", (event) => {
    setPlace(event.detail.place);
    keep();
    location.assign(linkTo(slides, order[event.detail.place]));
  });
}

function heading() {
  const columns = columnsOf(slides);
  root.style.setProperty("--columns", columns.map(([, , width]) => width).join(" "));
  return element("div", { class: "head", role: "row", "aria-rowindex": "1" },
    ...columns.map(([words, key, , kind]) => element("div", {
      class: `cell ${kind}`, role: "columnheader",
      "aria-sort": key === view.sort ? (view.down ? "descending" : "ascending") : false,
    }, key === null ? words : element("button", { type: "button", onclick: () => sortBy(key) },
      words, element("span", { "aria-hidden": "true" }, key === view.sort ? (view.down ? " \u25bc" : " \u25b2") : "")))));
}

function sortBy(key) {
  view.down = key === view.sort ? !view.down : false;
  view.sort = key;
  update();
  if (view.table) root.querySelector("[aria-sort] button")?.focus();
}

/** Show what the view says. The slide at the place stays it, if it is still in the list. */
function update() {
  const found = slides.select(view);
  order = found.order;
  filters.count(found.counts);
  const all = slides.rows.toLocaleString("en");
  count.textContent = order.length === slides.rows
    ? `${all} slides` : `${order.length.toLocaleString("en")} of ${all} slides`;
  clear.hidden = !isFiltered(view);
  if (order.length) delete root.dataset.empty;
  else root.dataset.empty = slides.rows ? "No slide fits the filters." : "There are no slides.";
  sort.value = view.sort;
  direction.textContent = view.down ? "\u2193 descending" : "\u2191 ascending";
  table.setAttribute("aria-pressed", view.table);
  if (search.value !== view.search) search.value = view.search;
  const row = view.at ? slides.find(...view.at) : -1;
  makeListIfOther();
  list.show(order, Math.max(0, row < 0 ? 0 : order.indexOf(row)));
  addressSoon();
}

function makeListIfOther() {
  const shape = [view.table, view.table && view.sort, view.table && view.down, slides.table.model].join("\n");
  if (shape !== makeListIfOther.shape) makeList();
  makeListIfOther.shape = shape;
}

function said() {
  numbers.replaceChildren(
    element("dt", {}, "A card"),
    element("dd", {}, "has a bar for the probability of each class, from 0 to 1; the bold one is predicted, and "
      + "its probability is the confidence. A share of tiles rejected is of those with enough tissue."),
    ...slides.table.cohorts.flatMap((one) => [
    element("dt", {}, `${one.title} (${one.slides.toLocaleString("en")} slides)`), element("dd", {}, one.numbers)]));
}

function options() {
  const { models } = slides.table;
  const tasks = new Map();
  for (const key of models) {
    const [task, ...rest] = key.split("/");
    if (!tasks.has(task)) tasks.set(task, element("optgroup", { label: task }));
    tasks.get(task).append(element("option", { value: key }, `${task} / ${rest.join(" / ")}`));
  }
  const none = slides.table.cohorts.every((one) => one.key === "predicted") ? "of the bundle" : "none yet";
  model.replaceChildren(...(models.length ? tasks.values() : [element("option", { value: "" }, none)]));
  model.value = slides.table.model ?? "";
  model.disabled = models.length < 2;
  sort.replaceChildren(...slides.sorts.map(([key, words]) => element("option", { value: key }, words)));
  if (!slides.sorts.some(([key]) => key === view.sort)) view.sort = "id"; // of another task's class
}

/** Read the slides with the predictions of a model; one that does not exist is the first. */
async function read(key) {
  read.stop?.abort();
  read.stop = new AbortController();
  const { signal } = read.stop;
  const ask = (name) => getJSON(`/api/cohort${name ? `?${new URLSearchParams({ model: name })}` : ""}`, { signal });
  try {
    let answer;
    try {
      answer = await ask(key);
    } catch (error) {
      if (!key || error.name === "AbortError") throw error;
      say(error.message);
      view.model = null;
      answer = await ask(null);
    }
    slides = new Slides(answer);
    const longest = Math.max(2, ...slides.classes.map((name) => name.length));
    root.style.setProperty("--classes", Math.max(1, slides.classes.length));
    root.style.setProperty("--name", `${Math.min(9, longest + 1)}ch`);
    options();
    said();
    filters.build(slides, view);
    update();
  } catch (error) {
    if (error.name !== "AbortError") count.textContent = error.message;
  }
}

function slidesFocus() { list?.go(list.active); }

search.addEventListener("input", () => { view.search = search.value; update(); });
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== "Escape") return;
  event.preventDefault(); // Escape would empty it
  slidesFocus();
});
model.addEventListener("change", () => { view.model = model.value; read(view.model); });
sort.addEventListener("change", () => { view.sort = sort.value; update(); });
direction.addEventListener("click", () => { view.down = !view.down; update(); });
table.addEventListener("click", () => { view.table = !view.table; update(); });
filter.addEventListener("click", () => {
  const open = panel.classList.toggle("open");
  filter.setAttribute("aria-expanded", open);
  if (open) panel.querySelector("input")?.focus();
});
panel.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && panel.classList.contains("open")) filter.click();
  else return;
  filter.focus();
});
clear.addEventListener("click", () => {
  Object.assign(view, withoutFilters(view));
  filters.build(slides, view);
  update();
  search.focus();
});
download.addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([asCSV(slides, order)], { type: "text/csv;charset=utf-8" }));
  const name = ["slides", ...(slides.table.model ?? "").split("/").filter(Boolean)].join("-");
  element("a", { href: url, download: `${name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
});
document.getElementById("ask").addEventListener("click", () => help.showModal());
document.getElementById("close").addEventListener("click", () => help.close());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.target.closest("input, select, textarea") && event.target.type !== "checkbox") return;
  if (event.key === "/") {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "?") {
    event.preventDefault();
    help.showModal();
  }
});
addEventListener("pagehide", keep);

const place = view.at?.join("/");
await read(view.model);
// Whoever comes back from a slide, or was sent here, goes on from its card.
const first = order[list?.active];
if (first !== undefined && `${slides.cohort(first)}/${slides.ids[first]}` === place) slidesFocus();
document.documentElement.dataset.ready = "cohort";
