// Where a file comes in: dropped anywhere, pasted, or chosen. `element`, `trigger` are Gradio's.
const most = Number(element.querySelector(".drop").dataset.most);
const input = element.querySelector("input"), progress = element.querySelector("progress"), text = element.querySelector("[role=status]");

function say(words, share, kind = "") {
  text.textContent = words;
  text.className = kind;
  element.querySelector(".drop").toggleAttribute("data-busy", share !== undefined);
  progress.value = share ?? 0;
}

let sending = null;

function send(file) {
  if (!file) return;
  sending?.abort(); // the newest file is wanted
  mend();
  if (file.size > most) {
    const size = most >= 1 << 20 ? `${Math.floor(most / (1 << 20))} MiB` : `${most} bytes`;
    return say(`${file.name}: the file is too large, the limit is ${size}`, undefined, "error");
  }
  const request = (sending = new XMLHttpRequest());
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
element.querySelector("[data-sample]").addEventListener("click", () => {
  sending?.abort();
  mend();
  say("");
  trigger("sample", {});
});
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
