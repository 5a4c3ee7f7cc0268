// What Gradio leaves out where pictures come from: pasting by keyboard, and words for a camera, a clipboard or a drop that
// gives no picture. It follows viewer.js in one function.

const isPicture = (type) => type.startsWith("image/");

// Returns what the source gives to the caller, and shows the user what went wrong, or what `flaw` finds wrong with it.
function telling(source, owner, method, flaw) {
  const plain = owner?.[method]?.bind(owner);
  if (!plain) return; // an old browser, or a page that is not secure
  owner[method] = async (...args) => {
    try {
      const got = await plain(...args);
      if (flaw?.(got)) report(props.problems[source]);
      else if (state.reported) report(null);
      return got;
    } catch (error) {
      report(props.problems[source]);
      throw error;
    }
  };
}

// As if it were dropped: Gradio then goes back to uploading, whichever source was chosen.
function hand(file) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  const area = document.querySelector("#picture .upload-container");
  area.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}

function take(files, source) {
  const file = [...files].find(({ type }) => isPicture(type));
  if (file) hand(file);
  else report(props.problems[source]);
}

document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  if (event.target.closest?.("input, textarea") && types.includes("text/plain")) return; // words for a field
  event.preventDefault();
  take(files, "clipboard");
});
// Without this, the browser offers no drop where Gradio's own area is hidden.
document.addEventListener("dragover", (event) => {
  if (event.target.closest?.("#picture")) event.preventDefault();
});
// Before Gradio sees it, who on a picture would look at the files when the browser has already taken them back.
document.addEventListener(
  "drop",
  (event) => {
    if (!event.isTrusted || !event.target.closest?.("#picture")) return;
    event.preventDefault();
    event.stopPropagation();
    take(event.dataTransfer.files, "drop");
  },
  true,
);
telling("camera", navigator.mediaDevices, "getUserMedia");
telling("clipboard", navigator.clipboard, "read", (items) => !items.some(({ types }) => types.some(isPicture)));
