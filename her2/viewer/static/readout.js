// What is seen of a slide in numbers: scale bar, magnification, and the place under the pointer.
import { element } from "./common.js";

const LONGEST_BAR_PX = 160;
const QUIET_MS = 700;

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** The largest 1, 2 or 5 times a power of ten up to `most`. */
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((one) => one <= most));
}

/** A length as people say it: 50 um, 2 mm. */
export function length(um) {
  const digits = (value) => parseFloat(value.toPrecision(3)).toString();
  if (um >= 10000) return `${digits(um / 10000)} cm`;
  return um >= 1000 ? `${digits(um / 1000)} mm` : `${digits(um)} \u00b5m`;
}

/** The magnification that so many um per px of a screen amount to: 10 um / mpp, as 20x is 0.5. */
function magnification(um) {
  const times = 10 / um;
  return `${times >= 10 ? Math.round(times) : parseFloat(times.toPrecision(2))}x`;
}

/** Whether the px of a slide are as wide as high. */
export function isotropic([x, y]) { return Math.abs(x / y - 1) < 0.005; }

export class Readout {
  constructor(pane) {
    this.pane = pane;
    this.across = element("div", { class: "bar-across" });
    this.down = element("div", { class: "bar-down" });
    this.scale = element("span");
    this.share = element("span", { class: "readout-share" });
    this.place = element("div", { class: "readout-place" });
    this.live = element("div", { class: "visually-hidden", role: "status", "aria-live": "polite" });
    pane.canvas.append(element("div", { class: "readout", "aria-hidden": "true" },
      element("div", { class: "bars" }, this.down, this.across),
      element("div", {}, this.scale, this.share), this.place));
    pane.stage.append(this.live);
    pane.map.on("move zoom resize", () => this.update());
    pane.map.on("moveend", () => this.#announce());
    pane.map.on("mousemove", (event) => this.#at(pane.toLevel0(event.latlng)));
    pane.map.on("mouseout", () => this.#at(pane.centre, "centre"));
    this.update();
  }

  update() {
    const { pane } = this;
    const { mpp } = pane.facts;
    [this.scale.textContent, this.share.textContent] = this.#words();
    this.across.hidden = !mpp;
    this.down.hidden = !mpp || isotropic(mpp);
    if (mpp) {
      const perPx = mpp.map((um) => um / 2 ** pane.map.getZoom());
      const [across, down] = perPx.map((um) => roundLength(um * LONGEST_BAR_PX));
      this.across.style.width = `${across / perPx[0]}px`;
      this.across.textContent = length(across);
      this.down.style.height = `${down / perPx[1]}px`;
      this.down.textContent = length(down);
    }
    this.#at(pane.centre, "centre");
  }

  /** Magnification in words, and compared with full resolution. */
  #words() {
    const { mpp } = this.pane.facts;
    const zoom = this.pane.map.getZoom();
    const digits = (value) => parseFloat(value.toPrecision(3));
    const share = Math.abs(zoom) < 1e-3 ? "full resolution"
      : zoom > 0 ? `full resolution ${digits(2 ** zoom)} times enlarged`
        : `${digits(100 * 2 ** zoom)} % of full resolution`;
    if (!mpp) return ["\u00b5m/px not known, so no scale bar", `; ${share}`];
    const [x, y] = mpp.map((um) => digits(um / 2 ** zoom));
    const both = isotropic(mpp) ? x : `${x} across, ${y} down,`;
    return [`${both} \u00b5m/px, as ${magnification(mpp[0] / 2 ** zoom)}`, `; ${share}`];
  }

  #at({ x, y }, what = "") {
    const { mpp } = this.pane.facts;
    const um = mpp ? ` (${length(Math.max(0, x * mpp[0]))}, ${length(Math.max(0, y * mpp[1]))})` : "";
    this.place.textContent = `${what} x ${number.format(Math.floor(x))}, y ${number.format(Math.floor(y))} px${um}`;
  }

  #announce() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { x, y } = this.pane.centre;
      this.live.textContent = `${this.#words().join("")}; centre at x ${number.format(x)}, y ${number.format(y)} px`;
    }, QUIET_MS);
  }
}
