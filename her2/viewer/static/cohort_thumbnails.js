// Pictures of the cards in sight: few at a time, the latest asked for first, and none that has gone.

const AT_ONCE = 4;
const PATIENCE_MS = 60; // what is scrolled past within this is never asked for

export class Thumbnails {
  #waiting = new Map(); // element -> address, in the order in which they were asked for
  #running = new Map(); // element -> its AbortController

  /** Fill an element, whose first child is an img. */
  want(place, address) {
    this.#waiting.set(place, address);
    this.timer ??= setTimeout(() => { this.timer = null; this.#next(); }, PATIENCE_MS);
  }

  /** Forget the pictures inside an element that left the page. */
  drop(within) {
    for (const place of within.querySelectorAll(".picture")) {
      this.#waiting.delete(place);
      this.#running.get(place)?.abort();
      this.#running.delete(place);
    }
  }

  #next() {
    while (this.#running.size < AT_ONCE && this.#waiting.size) {
      const [place, address] = [...this.#waiting].at(-1);
      this.#waiting.delete(place);
      this.#load(place, address);
    }
  }

  async #load(place, address) {
    const stop = new AbortController();
    this.#running.set(place, stop);
    try {
      const answer = await fetch(address, { signal: stop.signal });
      if (!answer.ok) throw new Error("no picture");
      const url = URL.createObjectURL(await answer.blob());
      const image = place.firstElementChild;
      image.src = url;
      await image.decode().finally(() => URL.revokeObjectURL(url));
      place.classList.add("there");
      // Of a slide whose file is gone: what the run drew for its quality control.
      if (answer.headers.get("X-From") === "qc") place.dataset.words = "file is gone: quality control picture";
    } catch (error) {
      if (error.name !== "AbortError") place.dataset.words = "no picture";
    } finally {
      if (this.#running.get(place) === stop) this.#running.delete(place);
      this.#next();
    }
  }
}
