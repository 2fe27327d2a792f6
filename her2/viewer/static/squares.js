// The squares of a slide as a Leaflet layer; Leaflet's zoom 0 is full resolution, -1 is half of it.
import { element, slideURL } from "./common.js";

const L = window.L;
const DAMAGED = "/static/damaged.svg";

/**
 * Width and height of a square in px of its level. It ends where the slide does, which may be within
 * its last px, and elsewhere goes on into its neighbours, or scaled squares would have seams.
 */
export function part({ zoom, size_px }, level, x, y) {
  const step = 2 ** (zoom.levels - 1 - level);
  const along = (at, whole) =>
    Math.min(zoom.tile_px + zoom.overlap_px, whole / step - at * zoom.tile_px);
  return { width: along(x, size_px[0]), height: along(y, size_px[1]) };
}

/**
 * A map that goes where it is told at once. Leaflet's own, without animation, takes all squares away
 * before it asks for others, and rounds a centre to whole px of the screen, so that it would drift.
 */
export const SlideMap = L.Map.extend({
  setView(centre, zoom, options) {
    if (!this._loaded) return L.Map.prototype.setView.call(this, centre, zoom, options);
    this._stop();
    return this._resetView(L.latLng(centre), this._limitZoom(zoom ?? this._zoom));
  },

  /** Also the end of a pinch. */
  _resetView(centre, zoom, ...rest) {
    if (!this._loaded) return L.Map.prototype._resetView.call(this, centre, zoom, ...rest);
    L.DomUtil.setPosition(this._mapPane, L.point(0, 0));
    this._moveStart(true);
    const stays = zoom === this._zoom;
    this._move(centre, zoom);
    if (stays) this.fire("zoom"); // or layers would stay where the map was dragged to
    return this._moveEnd(true);
  },
});

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
    this.on("tileunload", ({ tile }) => giveUp(tile));
  },

  /** Leaflet calls this when the level changes: squares on their way would keep others waiting. */
  _abortLoading() {
    for (const [key, { coords, loaded, el }] of Object.entries(this._tiles)) {
      if (coords.z === this._tileZoom || loaded) continue;
      giveUp(el);
      el.remove();
      delete this._tiles[key];
    }
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
      done(null, image); // Leaflet hides a square with an error
    };
    const ending = level === facts.zoom.levels - 1 ? "webp" : "jpg";
    image.src = `${slideURL("", cohort, slideId, "zoom", level, `${at.x}_${at.y}.${ending}`)}` +
      `?v=${facts.zoom.version}`;
    return image;
  },
});

function giveUp(image) {
  image.onload = image.onerror = null;
  if (!image.complete) image.removeAttribute("src");
}

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
