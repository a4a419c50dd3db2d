"use strict";
(() => {
  document.documentElement.classList.add("js");
  const MOST = 16;

  const rounded = (length) => {
    const power = 10 ** Math.floor(Math.log10(length));
    return [5, 2, 1].map((m) => m * power).find((m) => m <= length * (1 + 1e-9)) || power;
  };

  const start = (viewer) => {
    const stage = viewer.querySelector(".stage");
    const layers = [...stage.querySelectorAll(".layer")];
    const range = viewer.querySelector(".slide input");
    const marks = stage.querySelector(".marks");
    const output = viewer.querySelector(".zoom output");
    const choose = {};
    viewer.querySelectorAll("select[data-side]").forEach((s) => { choose[s.dataset.side] = s; });
    let zoom = 1, x = 0, y = 0; // the shown part begins at x, y in shares of the region

    const named = (side) => choose[side].selectedOptions[0].textContent;

    const drawSides = () => {
      for (const side of ["left", "right"]) {
        for (const layer of layers) layer.classList.toggle(side, layer.dataset.name === choose[side].value);
        stage.querySelector(".tag." + side).textContent = named(side);
      }
      drawDivider();
    };
    const drawDivider = () => {
      stage.style.setProperty("--at", range.value + "%");
      const text = range.value + " % " + named("left") + ", " + (100 - range.value) + " % " + named("right");
      range.setAttribute("aria-valuetext", text);
    };
    const drawPlace = () => {
      const most = 1 - 1 / zoom;
      x = Math.min(Math.max(x, 0), most);
      y = Math.min(Math.max(y, 0), most);
      stage.style.setProperty("--move", `scale(${zoom}) translate(${-100 * x}%, ${-100 * y}%)`);
      stage.classList.toggle("zoomed", zoom > 1);
      output.textContent = (zoom < 9.95 ? Math.round(zoom * 10) / 10 : Math.round(zoom)) + "×";
      for (const layer of layers) {
        const pixels = stage.clientWidth * zoom / Number(layer.dataset.samples);
        layer.firstElementChild.classList.toggle("crisp", pixels >= 2.5);
      }
      const width = Number(viewer.dataset.width) / zoom;
      const length = rounded(0.3 * width);
      const bar = stage.querySelector(".bar");
      bar.querySelector("i").style.width = 100 * length / width + "%";
      bar.querySelector("span").textContent = Number(length.toPrecision(3)) + " " + viewer.dataset.unit;
    };
    const zoomTo = (wanted, atX = 0.5, atY = 0.5) => {
      const next = Math.min(Math.max(wanted, 1), MOST);
      x += atX / zoom - atX / next; // what lies under the pointer stays there
      y += atY / zoom - atY / next;
      zoom = next;
      drawPlace();
    };
    const reset = () => { zoom = 1; x = 0; y = 0; drawPlace(); };

    range.addEventListener("input", drawDivider);
    for (const side of ["left", "right"]) choose[side].addEventListener("change", drawSides);
    const acts = { in: () => zoomTo(zoom * 1.5), out: () => zoomTo(zoom / 1.5), reset };
    viewer.querySelectorAll("[data-zoom]").forEach((b) => b.addEventListener("click", acts[b.dataset.zoom]));
    const box = viewer.querySelector("[data-marks]");
    if (box) box.addEventListener("change", () => marks.classList.toggle("off", !box.checked));

    stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = 0.1 / zoom;
      const keys = {
        ArrowLeft: () => { x -= step; drawPlace(); }, ArrowRight: () => { x += step; drawPlace(); },
        ArrowUp: () => { y -= step; drawPlace(); }, ArrowDown: () => { y += step; drawPlace(); },
        "+": acts.in, "=": acts.in, "-": acts.out, 0: reset,
      };
      const act = keys[event.key];
      if (!act || (zoom === 1 && event.key.startsWith("Arrow"))) return; // then the page scrolls
      act();
      event.preventDefault();
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== stage) return; // the page scrolls
      const place = stage.getBoundingClientRect();
      const before = zoom;
      zoomTo(zoom * Math.exp(-event.deltaY / 400), (event.clientX - place.left) / place.width,
        (event.clientY - place.top) / place.height);
      if (event.ctrlKey || zoom !== before) event.preventDefault(); // else the page scrolls
    }, { passive: false });

    let held = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      held = { divider: Boolean(event.target.closest(".divider")), fromX: event.clientX, fromY: event.clientY, x, y };
      if (held.divider || zoom > 1) stage.setPointerCapture(event.pointerId);
      stage.classList.toggle("moving", !held.divider && zoom > 1);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!held) return;
      const place = stage.getBoundingClientRect();
      if (held.divider) {
        range.value = Math.round(100 * (event.clientX - place.left) / place.width);
        drawDivider();
      } else if (zoom > 1) {
        x = held.x - (event.clientX - held.fromX) / place.width / zoom;
        y = held.y - (event.clientY - held.fromY) / place.height / zoom;
        drawPlace();
      }
    });
    const release = () => { held = null; stage.classList.remove("moving"); };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
    window.addEventListener("resize", drawPlace);
    drawSides();
    drawPlace();
  };

  document.querySelectorAll(".viewer").forEach(start);

  let opened = []; // what is folded is printed too
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => { for (const each of opened) each.open = false; opened = []; });
})();
