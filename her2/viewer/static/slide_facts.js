// Panel "Slide": what its file, its row of the manifest and the run's tables say.
import { element, getJSON, slideURL, state } from "./common.js";
import { isotropic, length } from "./readout.js";

const px = (value) => value.toLocaleString("en");
const both = ([x, y]) => (isotropic([x, y]) ? `${+x.toPrecision(4)}`
  : `${+x.toPrecision(4)} across, ${+y.toPrecision(4)} down`);

/** The truth of a task in words. */
function truth({ class: name, value, label }) {
  if (value === null) return "not known";
  return name === null ? `none, as ${label} is ${value}` : `${name} (${label} ${value})`;
}

function size({ size_px, mpp }) {
  if (!size_px) return "not known";
  const [width, height] = size_px;
  const um = mpp ? `, ${length(width * mpp[0])} x ${length(height * mpp[1])}` : "";
  return `${px(width)} x ${px(height)} px${um}`;
}

function scale({ mpp, mpp_source, mpp_problem, file_mpp }) {
  if (!mpp) return mpp_problem;
  if (mpp_source !== "manifest") return `${both(mpp)} \u00b5m/px, of the file`;
  const own = file_mpp ? `the file says ${both(file_mpp)}` : "the file has none";
  return `${both(mpp)} \u00b5m/px, of the manifest; ${own}`;
}

function use({ grid, status, reason, tiles }) {
  if (status === "ok") return `${grid}: ${px(tiles)} tiles`;
  return `${grid}: not used${reason ? `, as ${reason}` : ""}`;
}

export async function attach(pane) {
  const { facts, cohort, slideId } = pane;
  const body = pane.addSection("Slide", { open: !state.get("with") });
  const list = element("dl", { class: "facts" });
  const add = (name, value) => {
    if (value !== null && value !== undefined && value !== "")
      list.append(element("dt", {}, name), element("dd", {}, String(value)));
  };
  add("Slide", slideId);
  add("Cohort", facts.cohort_title);
  add("Patient", facts.patient_id);
  add("Site", facts.site);
  add("Scanner", facts.scanner);
  for (const one of facts.truth) add(`Truth, ${one.task}`, truth(one));
  if (facts.prediction) {
    const { class: name, probabilities, cautions } = facts.prediction;
    const said = Object.entries(probabilities).map(([one, p]) => `${one} ${p.toFixed(3)}`);
    add("Predicted", `${name} (${said.join(", ")})`);
    add("Cautions", cautions);
  }
  add("Size", size(facts));
  add("Scale", scale(facts));
  add("Objective", facts.objective && `${facts.objective}x by the file`);
  add("Format", facts.vendor);
  for (const one of facts.grids) add("Tiles", use(one));
  add("Tissue", facts.tissue_mm2 && `${+facts.tissue_mm2.toPrecision(3)} mm\u00b2`);
  body.append(list);
  if (facts.problem) return;
  // Reads some MB of the file, so the page does not wait for it.
  getJSON(slideURL("/api", cohort, slideId, "file")).then(({ same }) => {
    if (same === false) {
      body.append(element("p", { class: "alert" }, "The file is not the one that the run read: its "
        + "layers and figures are of another file."));
    }
  }, (error) => body.append(element("p", { class: "alert" }, error.message)));
}
