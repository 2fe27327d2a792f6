// The page of a slide: one pane, or two side by side, and the panels that each of them has.
import { element, say, slideURL, state } from "./common.js";
import * as compare from "./compare.js";
import * as layers from "./layers.js";
import { neighbours } from "./neighbours.js";
import * as notes from "./notes.js";
import { Pane } from "./pane.js";
import * as similar from "./similar.js";
import * as slideFacts from "./slide_facts.js";
import * as tile from "./tile.js";
import { Together } from "./together.js";
import { anywhere, onSlide } from "./tools.js";

/** What a pane has beside the slide; each is a function of a pane. */
const PANELS = [
  slideFacts.attach,
  layers.attach,
  tile.attach,
  notes.attach,
  similar.attach,
];

const MENTION_MS = 6000;

const root = document.getElementById("panes");
const bar = document.getElementById("slide-bar");
const { cohort, slide } = root.dataset;
const panes = [];
root.panes = panes; // for the console, and tests
let active = 0, beside = null;

function button(words, title, act, more = {}) {
  return element("button", { type: "button", title, onclick: act, ...more }, words);
}

async function add(ofCohort, id) {
  const pane = await Pane.open(ofCohort, id, root, panes.length + 1);
  const index = panes.push(pane) - 1;
  pane.root.addEventListener("focusin", () => { active = index; });
  pane.root.addEventListener("pointerdown", () => { active = index; });
  for (const attach of PANELS) {
    try {
      await attach(pane);
    } catch (error) { // the other panels do not need it
      pane.addSection("Not shown").append(element("p", { class: "alert" }, error.message));
    }
  }
  return pane;
}

/** The address of another slide, with what is looked at but not where. */
function addressOf([ofCohort, id]) {
  const query = new URLSearchParams();
  for (const name of ["model", "class", "scale", "layers", "panel"]) {
    if (state.get(name) !== null) query.set(name, state.get(name));
  }
  const text = query.toString();
  return slideURL("", ofCohort, id) + (text ? `?${text}` : "");
}

function addNeighbours() {
  const { previous, next, number, of, query } = beside;
  const link = (to, words, label) => (to
    ? element("a", { href: addressOf(to), title: `${label}: ${to[1]}`, "aria-label": `${label}: ${to[1]}` },
      words) : element("span", { class: "muted", "aria-hidden": "true" }, words));
  bar.append(element("span", { class: "neighbours" },
    link(previous, "\u2190 P", "Previous slide (P)"),
    element("span", {}, number ? `${number} of ${of}` : ""),
    link(next, "N \u2192", "Next slide (N)")));
  if (query) document.getElementById("to-cohort").href = `/?${query}`;
}

/** Words that are of no use for long. */
function mention(words) {
  say(words);
  clearTimeout(mention.timer);
  mention.timer = setTimeout(() => say(""), MENTION_MS);
}

async function copyLink() {
  panes.forEach((pane) => pane.keepPlace());
  try {
    await navigator.clipboard.writeText(location.href);
    mention("The link is copied. It opens where the address that her2 view printed was opened before.");
  } catch {
    mention("This browser does not let the page copy; the link is in its address bar.");
  }
}

function addCompare(pane) {
  let shown = null; // made when it is asked for, as there may be 20,000 slides to choose from
  bar.append(button("Side by side", "Another slide or model beside this one", () => {
    shown?.remove();
    shown = compare.dialog(pane, beside.slides);
    document.body.append(shown);
    shown.showModal();
  }));
}

async function addSecond([ofCohort, id]) {
  const second = await add(ofCohort, id);
  const together = new Together(panes[0], second);
  if (second.state.get("z") === null) together.align();
  const link = button("Move together", "Whether both slides move together, as they are aligned now",
    () => set(!together.linked), { class: "toggle" });
  const set = (linked) => {
    if (linked) together.link();
    else together.unlink();
    link.setAttribute("aria-pressed", String(linked));
    state.set({ link: linked ? null : "0" });
  };
  set(state.get("link") !== "0");
  bar.append(link, button("Close the second", "One slide again", () => compare.open(null)));
}

const help = document.getElementById("help");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, select, textarea, dialog, [contenteditable]")) return;
  if (event.key === "?") help.showModal();
  const pane = panes[active];
  if (!pane) return;
  // Nothing else has the focus on a page that was just opened, as by N.
  const free = event.target === pane.canvas || event.target === document.body;
  let done = free && onSlide(pane, event.key);
  done ||= anywhere(pane, event.key);
  const to = { n: beside?.next, p: beside?.previous }[event.key.toLowerCase()];
  if (to) location.assign(addressOf(to));
  if (done || to) event.preventDefault();
});

bar.append(button("?", "Keys", () => help.showModal(), { "aria-label": "Keys" }),
  button("Copy link", "The address of what is shown now", copyLink));
try {
  const [pane, list] = await Promise.all([add(cohort, slide), neighbours(cohort, slide)]);
  beside = list;
  addNeighbours();
  addCompare(pane);
} catch (error) {
  say(error.message);
}
const second = compare.asked();
if (panes.length && second) {
  try {
    await addSecond(second);
  } catch (error) {
    say(`${second.join("/")}: ${error.message}`);
  }
}
document.documentElement.dataset.ready = "yes";
