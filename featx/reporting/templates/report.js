"use strict";
(() => {
  const list = document.getElementById("mistake-list");
  const filter = document.getElementById("filter");
  const all = document.getElementById("all");
  const shown = document.getElementById("shown");
  const show = (wanted) => {
    let n = 0;
    for (const item of list.children) {
      item.hidden = !wanted(item.dataset);
      n += !item.hidden;
    }
    shown.textContent = `${n} of ${list.children.length} shown`;
    all.hidden = n === list.children.length;
  };
  if (list) {
    filter.addEventListener("change", () =>
      show((d) => !filter.value || d.truth === filter.value || d.answer === filter.value));
    all.addEventListener("click", () => { filter.value = ""; show(() => true); });
    for (const cell of document.querySelectorAll(".confusion button")) {
      cell.addEventListener("click", () => {
        filter.value = "";
        show((d) => d.truth === cell.dataset.truth && d.answer === cell.dataset.answer);
        document.getElementById("mistakes").scrollIntoView();
        all.focus({ preventScroll: true });
      });
    }
  }
  const map = document.getElementById("points");
  if (!map) return;
  const thumbs = JSON.parse(document.getElementById("thumbs").textContent);
  const tip = document.getElementById("tip");
  const points = [...map.querySelectorAll("g")];
  let at = -1;
  const point = (index) => {
    points[at]?.classList.remove("on");
    at = index;
    const one = points[at];
    tip.hidden = !one;
    if (!one) return;
    one.classList.add("on");
    const image = tip.querySelector("img");
    image.hidden = !(one.dataset.thumb in thumbs);
    if (!image.hidden) image.src = thumbs[one.dataset.thumb];
    tip.querySelector("span").textContent = `${one.dataset.label}: ${one.dataset.name}`;
    const box = one.getBoundingClientRect(), frame = map.parentElement.getBoundingClientRect();
    const left = box.left - frame.left;
    tip.style.left = `${Math.min(left, Math.max(0, frame.width - 170))}px`;
    tip.style.top = `${box.bottom - frame.top + 6}px`;
  };
  const colours = document.getElementById("colours");
  const circles = points.map((one) => one.querySelector("circle"));
  const classes = circles.map((one) => one.getAttribute("class"));
  const code = {
    error: (one) => Number(one.classList.contains("ring")),
    part: (one) => ["train", "test", "new"].indexOf(one.dataset.part),
  };
  colours.addEventListener("change", () => {
    circles.forEach((one, index) => {
      const ring = one.classList.contains("ring") ? " ring" : "";
      const own = code[colours.value];
      one.setAttribute("class", own ? `c${own(one)}${ring}` : classes[index]);
    });
    for (const legend of document.querySelectorAll(".legend"))
      legend.hidden = legend.dataset.colours !== colours.value;
  });
  points.forEach((one, index) => one.addEventListener("pointerenter", () => point(index)));
  map.addEventListener("pointerleave", () => point(-1));
  map.addEventListener("blur", () => point(-1));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") point(-1);
    if (!step) return;
    event.preventDefault();
    point((at + step + points.length) % points.length);
  });
})();
