// Sorts tables, enlarges pictures and opens everything for print. The page is complete without it.
"use strict";
(() => {
  // The first number of a cell, without its interval and notes; cells without a number sort last.
  const text = (cell) => (cell.querySelector(".value") || cell).textContent.trim();
  const value = (cell) => {
    const found = text(cell).replace(/[,\u2212]/g, (sign) => (sign === "," ? "" : "-")).match(/^[<+[]?\s*(-?\d+(\.\d+)?(e[+-]?\d+)?)/);
    return found ? Number(found[1]) : null;
  };

  function sortable(table) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3 || table.tHead?.rows.length !== 1) return;
    const original = [...body.rows];
    const fixed = original.filter((row) => row.classList.contains("total"));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const order = { ascending: "descending", descending: null }[was] ?? (was ? null : "ascending");
        for (const other of heads) other.removeAttribute("aria-sort");
        let rows = original;
        if (order) {
          head.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          const numeric = head.classList.contains("number");
          rows = original.filter((row) => !fixed.includes(row)).sort((a, b) => {
            const [first, second] = [a.cells[column], b.cells[column]];
            if (!numeric) return sign * text(first).localeCompare(text(second), "en", { numeric: true });
            const [x, y] = [value(first), value(second)];
            if (x === null || y === null) return (x === null) - (y === null);
            return sign * (x - y);
          });
          rows.push(...fixed);
        }
        body.append(...rows);
      });
    });
  }
  for (const table of document.querySelectorAll("table")) sortable(table);

  const viewer = document.querySelector(".enlarged");
  const large = viewer.querySelector("img");
  let opener = null;
  function enlarge(picture) {
    opener = picture;
    large.src = picture.src;
    large.alt = picture.alt;
    large.width = picture.width;
    large.height = picture.height;
    viewer.querySelector("[data-view=words]").textContent = picture.alt;
    viewer.showModal();
  }
  for (const picture of document.querySelectorAll("figure img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.setAttribute("aria-haspopup", "dialog");
    picture.addEventListener("click", () => enlarge(picture));
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enlarge(picture);
    });
  }
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer || event.target.closest("button")) viewer.close();
  });
  viewer.addEventListener("close", () => opener?.focus());

  // A link into a closed part opens it, and print shows the whole page.
  function reveal() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const closed = target && target.closest("details:not([open])");
    if (closed) {
      closed.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", reveal);
  reveal();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });
})();
