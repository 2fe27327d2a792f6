// Sorts, filters and enlarges the quality-control gallery. Without it, every slide is shown.
"use strict";
(() => {
  const list = document.querySelector(".gallery");
  const tools = document.querySelector(".gallery-tools");
  const viewer = document.querySelector(".viewer");
  if (!list || !tools || !viewer) return;

  const cards = [...list.querySelectorAll(".card")];
  const sort = tools.querySelector("[data-tool=sort]");
  const show = tools.querySelector("[data-tool=show]");
  const search = tools.querySelector("[data-tool=search]");
  const status = tools.querySelector("[role=status]");
  const number = (card, name) => Number(card.dataset[name]);
  const shown = () => [...list.querySelectorAll(".card")].filter((card) => !card.closest("li").hidden);
  const original = new Map(cards.map((card, index) => [card, index]));
  let current = null;

  function focusable(card) {
    for (const other of cards) other.tabIndex = -1;
    if (card) card.tabIndex = 0;
  }

  function arrange() {
    const [name, direction] = sort.value.split(" ");
    const compare = {
      worst: (a, b) => original.get(a) - original.get(b),
      id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", { numeric: true }),
    }[name] || ((a, b) => (direction === "up" ? 1 : -1) * (number(a, name) - number(b, name)) || original.get(a) - original.get(b));
    const words = search.value.trim().toLowerCase();
    for (const card of [...cards].sort(compare)) {
      const item = card.closest("li");
      const fits = show.value === "all" || card.dataset.kind.split(" ").includes(show.value);
      const found = !words || `${card.dataset.id} ${card.dataset.site} ${card.dataset.reason}`.toLowerCase().includes(words);
      item.hidden = !(fits && found);
      list.append(item);
    }
    const visible = shown();
    focusable(visible[0]);
    status.textContent = `${visible.length} of ${cards.length} slides`;
  }

  function look(card) {
    current = card;
    const picture = card.querySelector("img");
    const large = viewer.querySelector("img");
    large.hidden = !picture;
    if (picture) {
      large.src = picture.src;
      large.alt = picture.alt;
      large.width = picture.width;
      large.height = picture.height;
    }
    const order = shown();
    viewer.querySelector("[data-view=name]").textContent = card.dataset.id;
    viewer.querySelector("[data-view=place]").textContent = `${order.indexOf(card) + 1} of ${order.length}`;
    viewer.querySelector("[data-view=reason]").textContent = card.dataset.reason;
    viewer.querySelector("dl").replaceChildren(...card.querySelector("template").content.cloneNode(true).children);
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const order = shown();
    const next = order[order.indexOf(current) + by];
    if (next) look(next);
  }

  function columns(order) {
    const top = order[0].getBoundingClientRect().top;
    const next = order.findIndex((card) => card.getBoundingClientRect().top > top + 1);
    return next < 0 ? order.length : next;
  }

  list.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) look(card);
  });
  list.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.altKey || event.metaKey) return;
    const order = shown();
    const here = order.indexOf(card);
    const to = {
      ArrowRight: here + 1,
      ArrowLeft: here - 1,
      ArrowDown: here + columns(order),
      ArrowUp: here - columns(order),
      Home: 0,
      End: order.length - 1,
    }[event.key];
    if (to !== undefined && order[to]) {
      focusable(order[to]);
      order[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      look(card);
    } else if (to === undefined) {
      return;
    }
    event.preventDefault();
  });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) {
      step(by);
      event.preventDefault();
    }
  });
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === viewer || (button && button.dataset.by === "0")) viewer.close();
    else if (button) step(Number(button.dataset.by));
  });
  viewer.addEventListener("close", () => {
    focusable(current);
    current.focus();
  });
  for (const tool of [sort, show]) tool.addEventListener("change", arrange);
  search.addEventListener("input", arrange);

  for (const card of cards) {
    card.setAttribute("role", "button");
    card.setAttribute("aria-haspopup", "dialog");
  }
  tools.hidden = false;
  arrange();
})();
