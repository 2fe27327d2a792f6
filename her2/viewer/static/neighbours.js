// The list that a slide was opened from, which the page of the cohort leaves behind.
import { getJSON } from "./common.js";

/** Of this tab: {query, slides}, the cohort's address after "?", and [cohort, id] as they are listed. */
const KEPT = "her2-view-list";

function left() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? null;
  } catch {
    return null;
  }
}

/**
 * The slides beside this one, in the list that it was opened from, else in its cohort by id:
 * {query, previous, next, number, of, slides}, with null or [cohort, id] for the former two.
 */
export async function neighbours(cohort, slide) {
  const kept = left();
  const at = (slides) => slides.findIndex(([c, s]) => c === cohort && s === slide);
  let slides = kept?.slides ?? [], query = kept?.query ?? "";
  if (at(slides) < 0) {
    const all = await getJSON(`/api/cohorts/${encodeURIComponent(cohort)}/slides`);
    slides = all.slides.map((id) => [cohort, id]);
    query = "";
  }
  const index = at(slides);
  return { query, slides, number: index + 1, of: slides.length,
    previous: slides[index - 1] ?? null, next: index < 0 ? null : slides[index + 1] ?? null };
}
