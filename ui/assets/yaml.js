// The drawer with the draft as YAML: it follows the form until something is typed, and marks problems at their lines.
const find = (name) => element.querySelector(name);
const [drawer, box, list, apply, discard] = ['[popover]', 'textarea', 'ul', '.apply', '.discard'].map(find);
let [formText, timer, opener] = ['', 0];

const draw = () => {
  const wrong = new Set([...list.querySelectorAll('[data-pick]')].map((button) => Number(button.dataset.pick)));
  const rows = box.value.split('\n').map((_, row) => wrong.has(row + 1) ? `<b>✗ ${row + 1}</b>` : row + 1);
  find('.gutter').innerHTML = rows.join('\n');
  box.rows = rows.length + 1;
  box.ariaInvalid = String(wrong.size > 0);
  apply.disabled = discard.disabled = box.value === formText;
};
const put = (text) => { [box.value, formText, list.innerHTML] = [text, text, '']; draw(); };
const follow = () => {
  const {yaml, command} = JSON.parse(props.value);
  find('.copyable pre').textContent = command;
  if (box.value === formText) put(yaml);
};
// Shows what is wrong with the text, and returns whether that is nothing; with a name, saves the text as a preset.
const check = async (name = '') => {
  const text = box.value;
  clearTimeout(timer);
  const answer = await server.query([text, name]);
  if (name) trigger('submit');
  if (box.value !== text) return false;
  list.innerHTML = answer;
  draw();
  return !answer;
};
const edit = box.oninput = () => {
  draw();
  clearTimeout(timer);
  timer = setTimeout(check, 300);
};

apply.onclick = async () => {
  if (!await check()) return;
  put(box.value);
  trigger('apply', {text: box.value});
};
find('form').onsubmit = (event) => { event.preventDefault(); check(find('input').value); };
discard.onclick = () => { box.value = formText; follow(); };
list.onclick = ({target: {dataset}}) => {
  const start = [...box.value.split('\n').slice(0, dataset.pick - 1), ''].join('\n').length;
  box.focus();
  box.setSelectionRange(start, start);
};
drawer.onkeydown = (event) => {
  if (event.key === 'Escape') drawer.hidePopover();
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) window.loratoryPress(apply);
};
drawer.onbeforetoggle = ({newState}) => { if (newState === 'open') opener = document.activeElement; };
drawer.ontoggle = ({newState}) => { if (newState === 'closed') (opener.isConnected ? opener : document.querySelector('#panel [popovertarget]')).focus(); };
drawer.ondragover = (event) => !event.dataTransfer.types.includes('Files');  // false takes them
drawer.ondrop = async (event) => {
  const [file] = event.dataTransfer.files;
  if (!file) return;
  event.preventDefault();
  box.value = await file.slice(0, box.maxLength).text();  // the server refuses so much
  edit();
};
watch('value', follow);
follow();
