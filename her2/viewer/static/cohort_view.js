// What a view of the cohort is: filters, order, model and place, in the address and back.
import { FACETS } from "./cohort_data.js";

/** The view that an address says; what it does not say is all slides by id. */
export function readView(search = location.search) {
  const query = new URLSearchParams(search);
  const chosen = new Map();
  for (const [key] of FACETS) if (query.has(key)) chosen.set(key, new Set(query.getAll(key)));
  const [from, to] = (query.get("confidence") ?? "0-1").split("-").map(Number);
  const sort = query.get("sort") ?? "id";
  const at = query.get("at") ?? "";
  const cut = at.indexOf("/");
  return {
    chosen,
    from: share(from, 0), to: share(to, 1),
    search: query.get("q") ?? "",
    sort: sort.replace(/^-/, ""), down: sort.startsWith("-"),
    model: query.get("model"), table: query.get("view") === "table",
    at: cut > 0 ? [at.slice(0, cut), at.slice(cut + 1)] : null,
  };
}

/** The address of a view, after "?"; empty for all slides by id. */
export function queryOf(view) {
  const query = new URLSearchParams();
  if (view.model) query.set("model", view.model);
  if (view.search) query.set("q", view.search);
  for (const [key] of FACETS) {
    for (const name of view.chosen.get(key) ?? []) query.append(key, name);
  }
  if (view.from > 0 || view.to < 1) query.set("confidence", `${view.from}-${view.to}`);
  if (view.sort !== "id" || view.down) query.set("sort", `${view.down ? "-" : ""}${view.sort}`);
  if (view.table) query.set("view", "table");
  if (view.at) query.set("at", view.at.join("/"));
  return query.toString();
}

/** Whether a view leaves slides out. */
export function isFiltered(view) {
  return Boolean(view.search.trim()) || view.from > 0 || view.to < 1
    || [...view.chosen.values()].some((names) => names.size);
}

export function withoutFilters(view) {
  return { ...view, chosen: new Map(), from: 0, to: 1, search: "" };
}

function share(value, otherwise) {
  return Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : otherwise;
}
