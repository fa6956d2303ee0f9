// What Gradio's controls lack: names of groups, radios that are one group for the keys, releases by keys.

// Gradio gives each radio a group of its own, and the group no name. Parts of the page come and go, so this is repeated.
function nameControls() {
  for (const group of document.querySelectorAll("fieldset:not([aria-labelledby])")) {
    const title = group.querySelector("[data-testid=block-info]"), radios = group.querySelectorAll("input[type=radio]");
    if (!title || !radios.length) continue;
    title.id ||= radios[0].name + "-title";
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-labelledby", title.id);
    const name = radios[0].name;
    for (const radio of radios) radio.name = name;
  }
}
new MutationObserver(nameControls).observe(document.body, { childList: true, subtree: true });
nameControls();

// A quality beyond the ends becomes the end, and no number the last one, before Gradio refuses it.
let quality = "50", entered = "50";
const isNumber = (event) => event.target.matches?.("#quality input[type=number]");
function mend() {
  const [number, range] = ["number", "range"].map((type) => document.querySelector(`#quality input[type=${type}]`));
  if (!number) return; // another aim is chosen
  const { min, max } = range;
  const value = number.value === "" ? quality : String(Math.min(max, Math.max(min, number.value)));
  if (value === number.value) return;
  number.value = value;
  number.dispatchEvent(new Event("input", { bubbles: true }));
}
const keep = (event) => {
  if (event.target.closest?.("#quality") && event.target.value) quality = event.target.value;
};
for (const name of ["input", "focus"]) window.addEventListener(name, keep, true);
window.addEventListener("focus", (event) => { if (isNumber(event)) entered = event.target.value; }, true);
window.addEventListener("keydown", (event) => isNumber(event) && event.key === "Enter" && mend(), true);
// Gradio takes each blur for a release; one that changed nothing would only make the same again.
window.addEventListener(
  "blur",
  (event) => {
    if (!isNumber(event)) return;
    mend();
    if (event.target.value === entered) event.stopPropagation();
  },
  true,
);
// Gradio's sliders and numbers tell of a release by the pointer alone; keys are to do the same.
window.addEventListener("keyup", (event) => {
  const range = event.target.matches?.("input[type=range]");
  const moved = range && /^(Arrow|Page|Home|End)/.test(event.key);
  if (!moved && !(event.key === "Enter" && isNumber(event))) return;
  entered = event.target.value;
  event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});
