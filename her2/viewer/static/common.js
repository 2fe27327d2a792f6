// What all pages share: answers of the server, elements without markup from data, and status words.

/** The JSON of an address; a failure is an Error with the server's words. */
export async function getJSON(address, options = {}) {
  const answer = await fetch(address, options);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `${answer.status} ${answer.statusText}`);
  return body;
}

/** Send a change as JSON, with the method that says which. */
export function sendJSON(address, method, body) {
  return getJSON(address, {
    method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? null),
  });
}

/** An element. Text is text, never markup, so that an id or a remark cannot be a script. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Tell people, also those who listen to the page, what has happened. */
export function say(words) {
  document.getElementById("status").textContent = words;
}

/** The address of something of a slide: slideURL("/api", "development", "a-1", "tile"). */
export function slideURL(begin, cohort, slide, ...rest) {
  return [begin, "slides", ...[cohort, slide].map(encodeURIComponent), ...rest].join("/")
    .replace(/^\/+/, "/");
}

/** What the address says after "?", and changing it without a new entry of the history. */
export const state = {
  get(name, otherwise = null) {
    return new URLSearchParams(location.search).get(name) ?? otherwise;
  },
  set(values) {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === undefined || value === "") query.delete(name);
      else query.set(name, value);
    }
    const text = query.toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
  },
};
