// Where a file comes in: dropped anywhere, pasted, or chosen. `element`, `trigger` are Gradio's.
const input = element.querySelector("input"), progress = element.querySelector("progress"), text = element.querySelector("[role=status]");

function say(words, share, kind = "") {
  text.textContent = words;
  text.className = kind;
  element.querySelector(".drop").toggleAttribute("data-busy", share !== undefined);
  progress.value = share ?? 0;
}

function send(file) {
  if (!file) return;
  const request = new XMLHttpRequest();
  request.open("POST", new URL("lalic/open", document.baseURI));
  request.setRequestHeader("X-File-Name", encodeURIComponent(file.name || "picture"));
  request.upload.onprogress = (event) => say(`Sending ${file.name}`, event.total ? event.loaded / event.total : 0);
  request.onload = () => {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {}
    say(answer.error ?? (answer.key ? "" : "The server did not take the file"), undefined, "error");
    if (answer.key) trigger("opened", { key: answer.key });
  };
  request.onerror = () => say("The server cannot be reached. Is lalic web still running?", undefined, "error");
  say(`Sending ${file.name}`, 0);
  request.send(file);
}

input.addEventListener("change", () => {
  send(input.files[0]);
  input.value = "";
});
element.querySelector("[data-sample]").addEventListener("click", () => trigger("sample", {}));
const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let depth = 0;
for (const [name, change] of [["dragenter", 1], ["dragleave", -1]])
  window.addEventListener(name, (event) => {
    if (!carriesFile(event)) return;
    depth = Math.max(0, depth + change);
    document.body.toggleAttribute("data-dropping", depth > 0);
  });
window.addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
window.addEventListener("drop", (event) => {
  depth = 0;
  document.body.removeAttribute("data-dropping");
  if (!carriesFile(event)) return;
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
window.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (file) send(file);
});
// Gradio's sliders and numbers tell of a release by the pointer alone; keys are to do the same.
window.addEventListener("keyup", (event) => {
  const range = event.target.matches?.("input[type=range]");
  const moved = range && /^(Arrow|Page|Home|End)/.test(event.key);
  if (moved || (event.key === "Enter" && event.target.matches?.("#quality input[type=number]")))
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});
