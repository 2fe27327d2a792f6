// The squares of a slide as a Leaflet layer; Leaflet's zoom 0 is full resolution, -1 is half of it.
import { element, slideURL } from "./common.js";

const L = window.L;
const DAMAGED = "/static/damaged.svg";

/**
 * Level-0 px per px of a level, and the part of a square that lies on the slide, in px of the level.
 * A square ends where the slide does, which may be within its last px.
 */
export function part(facts, level, x, y) {
  const step = 2 ** (facts.zoom.levels - 1 - level);
  const side = facts.zoom.tile_px * step;
  const along = (at, whole) => Math.min(side, whole - at * side) / step;
  return { step, width: along(x, facts.size_px[0]), height: along(y, facts.size_px[1]) };
}

/** Options: `bounds`, and `onproblem`, told the answer for a square that did not come. */
export const Squares = L.GridLayer.extend({
  initialize(pane, options) {
    this._pane = pane;
    // A screen of two px per CSS px shows the next level.
    this._density = window.devicePixelRatio >= 1.5 ? 1 : 0;
    const { levels, tile_px } = pane.facts.zoom;
    new Image().src = DAMAGED;
    L.GridLayer.prototype.initialize.call(this, {
      tileSize: tile_px >> this._density, minNativeZoom: 1 - levels - this._density,
      maxNativeZoom: -this._density, minZoom: -99, maxZoom: 99, noWrap: true,
      updateWhenZooming: false, keepBuffer: 2, ...options,
    });
  },

  createTile(at, done) {
    const { cohort, slideId, facts } = this._pane;
    const level = facts.zoom.levels - 1 + at.z + this._density;
    const image = element("img", { alt: "", draggable: "false" });
    const fit = () => {
      const { width, height } = part(facts, level, at.x, at.y);
      image.style.width = `${width / 2 ** this._density}px`;
      image.style.height = `${height / 2 ** this._density}px`;
    };
    image.onload = () => {
      fit();
      done(null, image);
    };
    image.onerror = async () => {
      image.onload = image.onerror = null;
      fit();
      const answer = await reason(image.src);
      image.src = DAMAGED;
      image.title = answer.error;
      this.options.onproblem?.(answer);
      done(new Error(answer.error), image);
    };
    const ending = level === facts.zoom.levels - 1 ? "webp" : "jpg";
    image.src = `${slideURL("", cohort, slideId, "zoom", level, `${at.x}_${at.y}.${ending}`)}` +
      `?v=${facts.zoom.version}`;
    return image;
  },
});

/** Why a square did not come: {error, damaged}; `damaged` is true if only that part is. */
async function reason(address) {
  try {
    const answer = await fetch(address);
    if (answer.ok) return { error: "it cannot be shown by this browser", damaged: true };
    return await answer.json();
  } catch {
    return { error: "The server does not answer; is her2 view still running?", damaged: false };
  }
}
