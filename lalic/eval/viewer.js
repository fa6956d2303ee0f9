// Two versions of one picture under a divider, with zoom to pixels. No library, and nothing is loaded but the pictures.
//
//   const viewer = lalicViewer(element);
//   viewer.show({picture, width, height, views: [{id, title, note, src}], bits: {src, note}, message});
//
// picture: what is shown; while it is the same, zoom and place stay. width, height: of it, in pixels; each src may have
// fewer. views: the first is the original. bits: a map where bits go. message: shown if there are no views.
// The class lv-busy is a bar for whoever makes something.

function lalicViewer(root) {
  const GAIN = 8; // of differences
  const PIXELATED = 2; // screen pixels for a picture pixel from which on pixels are squares

  root.classList.add("lalic-viewer");
  root.innerHTML = `
    <div class="lv-stage" role="group" aria-label="Picture. Plus and minus zoom, 0 fits, 1 shows pixels, arrows move.">
      <div class="lv-busy"></div>
      <div class="lv-layer" data-side="left"></div>
      <div class="lv-layer" data-side="right"></div>
      <div class="lv-divider" role="slider" tabindex="0" aria-label="Divider between left and right"
        aria-valuemin="0" aria-valuemax="100"><span></span></div>
      <div class="lv-note" data-side="left"></div>
      <div class="lv-note" data-side="right"></div>
      <div class="lv-hint">Ctrl and wheel, or a pinch, to zoom</div>
      <div class="lv-message"></div>
    </div>
    <div class="lv-bar">
      <label>Left <select data-side="left" aria-label="Left of the divider"></select></label>
      <div class="lv-zoom" role="group" aria-label="Zoom">
        <button type="button" data-zoom="out" aria-label="Zoom out">−</button>
        <button type="button" data-zoom="fit">Fit</button>
        <button type="button" data-zoom="pixels" title="One pixel of the picture is one of the page">1:1</button>
        <button type="button" data-zoom="in" aria-label="Zoom in">+</button>
        <output></output>
      </div>
      <label>Right <select data-side="right" aria-label="Right of the divider"></select></label>
    </div>`;
  const find = (what, side) => root.querySelector(what + (side ? `[data-side=${side}]` : ""));
  const stage = find(".lv-stage"), divider = find(".lv-divider"), output = find("output");
  const sides = ["left", "right"];
  const state = { data: null, cut: 50, zoom: 0, x: 0, y: 0, chosen: { left: "original", right: "lalic" } };
  const images = new Map(); // src -> promise of a decoded image

  // Views

  function choices() {
    const data = state.data;
    const found = data.views.map((view) => ({ ...view, layers: [view.src] }));
    const original = data.views.find((view) => view.id === "original");
    if (original)
      for (const view of data.views)
        if (view !== original)
          found.push({
            id: `difference-${view.id}`,
            title: `Difference: ${view.title}`,
            note: `× ${GAIN}`,
            layers: [original.src, view.src],
            kind: "difference",
          });
    if (data.bits)
      found.push({ id: "bits", title: "Bits", note: data.bits.note, layers: [original.src, data.bits.src], kind: "bits" });
    return found;
  }

  function load(src) {
    if (!images.has(src)) {
      const image = new Image();
      image.alt = "";
      image.draggable = false;
      image.src = src;
      images.set(src, image.decode().then(() => image, () => image));
    }
    return images.get(src);
  }

  async function fill(side, number) {
    const all = choices();
    const view = all.find((one) => one.id === state.chosen[side]) ?? all[Math.min(side === "left" ? 0 : 1, all.length - 1)];
    const loaded = await Promise.all(view.layers.map(load));
    if (number !== state.number) return; // something newer is shown
    const layer = find(".lv-layer", side);
    layer.className = `lv-layer ${view.kind ?? "plain"}`;
    layer.replaceChildren(...loaded.map((image) => image.cloneNode()));
    layer.firstChild.alt = view.title; // of one picture, however many images make it
    find(".lv-note", side).replaceChildren(Object.assign(document.createElement("b"), { textContent: view.title }), ` ${view.note ?? ""}`);
    find("select", side).value = view.id;
    place();
  }

  function show(data) {
    const before = state.data;
    state.data = data;
    state.number = (state.number ?? 0) + 1;
    const there = Boolean(data?.views?.length);
    root.toggleAttribute("data-empty", !there);
    find(".lv-message").textContent = there ? "" : data?.message ?? "";
    if (!there) return;
    root.toggleAttribute("data-single", data.views.length < 2);
    const used = new Set([...data.views.map((view) => view.src), data.bits?.src]);
    for (const src of images.keys()) if (!used.has(src)) images.delete(src);
    const all = choices();
    for (const side of sides) {
      const options = all.map((view) => new Option(view.title, view.id));
      find("select", side).replaceChildren(...options);
    }
    if (before?.picture !== data.picture) state.zoom = 0;
    stage.style.setProperty("--ratio", data.width / data.height);
    for (const side of sides) fill(side, state.number);
  }

  // Geometry: state.zoom is CSS pixels for a picture pixel, 0 to fit; state.x, state.y the picture pixel in the middle

  function geometry() {
    const { width, height } = state.data;
    const box = stage.getBoundingClientRect();
    const fit = Math.min(box.width / width, box.height / height);
    const zoom = state.zoom || fit;
    const middle = (position, length, room) =>
      length * zoom <= room ? length / 2 : Math.min(Math.max(position, room / zoom / 2), length - room / zoom / 2);
    if (!state.zoom) [state.x, state.y] = [width / 2, height / 2];
    state.x = middle(state.x, width, box.width);
    state.y = middle(state.y, height, box.height);
    return { box, fit, zoom, left: box.width / 2 - state.x * zoom, top: box.height / 2 - state.y * zoom };
  }

  function place() {
    if (!state.data?.views?.length) return;
    const { box, fit, zoom, left, top } = geometry();
    const { width, height } = state.data;
    for (const layer of root.querySelectorAll(".lv-layer")) {
      layer.style.setProperty("--cut", `${state.cut}%`);
      for (const image of layer.children) {
        const scale = (zoom * width) / (image.naturalWidth || width);
        const across = (zoom * height) / (image.naturalHeight || height);
        image.style.transform = `translate(${left}px, ${top}px) scale(${scale}, ${across})`;
        image.style.imageRendering = scale * devicePixelRatio >= PIXELATED ? "pixelated" : "auto";
      }
    }
    divider.style.left = `${state.cut}%`;
    divider.setAttribute("aria-valuenow", Math.round(state.cut));
    output.textContent = `${Math.round(100 * zoom)} %`;
    root.toggleAttribute("data-zoomed", zoom > fit * 1.001);
    stage.dataset.zoom = zoom;
  }

  function cutAt(clientX) {
    const box = stage.getBoundingClientRect();
    state.cut = Math.min(100, Math.max(0, (100 * (clientX - box.left)) / box.width));
    place();
  }

  function zoomTo(wanted, clientX, clientY) {
    const { box, fit, zoom } = geometry();
    const next = Math.min(Math.max(wanted, Math.min(fit, 1)), Math.max(32, fit));
    const [dx, dy] = [(clientX ?? box.left + box.width / 2) - box.left - box.width / 2, (clientY ?? box.top + box.height / 2) - box.top - box.height / 2];
    state.x += dx / zoom - dx / next;
    state.y += dy / zoom - dy / next;
    state.zoom = Math.abs(next - fit) < 1e-6 * fit ? 0 : next;
    place();
  }

  function zoomBy(word) {
    const { zoom } = geometry();
    if (word === "fit") state.zoom = 0;
    else if (word === "pixels") return zoomTo(1);
    else return zoomTo(word === "in" ? zoom * 1.5 : zoom / 1.5);
    place();
  }

  // Hands

  const pointers = new Map();
  let what = null, pinch = 0;
  const distance = () => {
    const [a, b] = [...pointers.values()];
    return [Math.hypot(a.x - b.x, a.y - b.y), (a.x + b.x) / 2, (a.y + b.y) / 2];
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || root.hasAttribute("data-empty")) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    stage.setPointerCapture(event.pointerId);
    const zoomed = root.hasAttribute("data-zoomed");
    if (pointers.size === 2) [what, pinch] = ["pinch", distance()[0]];
    else what = divider.contains(event.target) || !zoomed ? "cut" : "pan";
    if (what === "cut") cutAt(event.clientX);
    if (what === "cut") divider.focus({ preventScroll: true });
    if (event.pointerType === "mouse") event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (what === "cut") cutAt(event.clientX);
    else if (what === "pan") {
      const { zoom } = geometry();
      state.x -= (event.clientX - last.x) / zoom;
      state.y -= (event.clientY - last.y) / zoom;
      place();
    } else if (what === "pinch" && pointers.size === 2) {
      const [now, x, y] = distance();
      zoomTo((geometry().zoom * now) / pinch, x, y);
      pinch = now;
    }
  });
  for (const name of ["pointerup", "pointercancel"])
    stage.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      what = pointers.size ? "pan" : null;
    });
  stage.addEventListener("dblclick", (event) => {
    if (root.hasAttribute("data-zoomed")) zoomBy("fit");
    else zoomTo(Math.max(1, 2 * geometry().zoom), event.clientX, event.clientY);
  });
  stage.addEventListener(
    "wheel",
    (event) => {
      if (root.hasAttribute("data-empty")) return;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        zoomTo(geometry().zoom * Math.exp(-Math.sign(event.deltaY) * Math.min(0.25, Math.abs(event.deltaY) / 200)), event.clientX, event.clientY);
        return;
      }
      root.setAttribute("data-hint", "");
      clearTimeout(state.hint);
      state.hint = setTimeout(() => root.removeAttribute("data-hint"), 1200);
    },
    { passive: false },
  );
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey || !state.data) return;
    const far = event.shiftKey ? 10 : 1;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const zooms = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "pixels" };
    if (event.target === divider && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      const steps = { ArrowLeft: state.cut - far, ArrowRight: state.cut + far, Home: 0, End: 100 };
      state.cut = Math.min(100, Math.max(0, steps[event.key]));
      place();
    } else if (event.key in zooms) zoomBy(zooms[event.key]);
    else if (event.key in arrows && root.hasAttribute("data-zoomed")) {
      const { zoom } = geometry();
      state.x += (arrows[event.key][0] * 40) / zoom;
      state.y += (arrows[event.key][1] * 40) / zoom;
      place();
    } else return;
    event.preventDefault();
  });
  for (const button of root.querySelectorAll("[data-zoom]"))
    if (button.matches("button")) button.addEventListener("click", () => zoomBy(button.dataset.zoom));
  for (const side of sides)
    find("select", side).addEventListener("change", (event) => {
      state.chosen[side] = event.target.value;
      fill(side, state.number);
    });
  new ResizeObserver(place).observe(stage);
  root.setAttribute("data-empty", "");
  return { show };
}
