// The page of a slide: one pane, or two side by side, and the panels that each of them has.
import { attach as similar } from "./similar.js";
import { say } from "./common.js";
import { Pane } from "./pane.js";

/** What a pane has beside the slide; each is a function of a pane. */
const PANELS = [similar];

const panes = document.getElementById("panes");

try {
  const pane = await Pane.open(panes.dataset.cohort, panes.dataset.slide, panes);
  for (const attach of PANELS) await attach(pane);
} catch (error) {
  say(error.message);
}
