// What Gradio 6.31 leaves out for people who use a keyboard or a screen reader: landmarks, names that are labels and not
// labels with all their help, a name of each group of choices, arrow keys in tabs, invalid fields, and a way to what scrolls.
// The page's address, and what the browser's tab shows. And number boxes that no wheel changes.
const LANDMARKS = {side: ['region', 'Your draft'], 'next-step': ['region', 'Next step']};
const BOXES = 'input:not([type=range]), textarea';
let named = 0;
let held = null; // what has the focus, or had it last
let working = null; // a button that had the focus when it was disabled
document.addEventListener('focusin', ({target}) => { held = target; });
// A list of choices opens again for the Tab that leaves its box, and then nothing closes it.
document.addEventListener('keydown', (event) => { if (event.key === 'Tab' && event.target.ariaAutoComplete) event.stopPropagation(); }, true);
const opened = new Set(); // folds with an id, which are drawn again with what they are about

const arrange = () => {
  // Gradio puts everything into one `main`; a banner within it is none. Our rules reach what is within a `.contain`.
  const [main, header] = [document.querySelector('main'), document.getElementById('header')];
  if (main && header && main.contains(header)) {
    const top = document.createElement('div');
    top.className = 'contain';
    main.before(top);
    top.append(header);
  }
  for (const [id, [role, label]] of Object.entries(LANDMARKS)) {
    const place = document.getElementById(id);
    if (!place || place.role) continue;
    place.role = role;
    place.ariaLabel = label;
  }
  for (const list of document.querySelectorAll('[role=tablist]')) {
    for (const tab of list.querySelectorAll('[role=tab]')) tab.tabIndex = tab.ariaSelected === 'true' ? 0 : -1;
  }
  for (const panel of document.querySelectorAll('.tabitem:not([aria-label])')) {
    const selected = document.querySelector('#tabs [role=tab][aria-selected=true]');
    if (selected && panel.offsetParent) panel.ariaLabel = selected.textContent;
  }
  // Each choice has a name of its own: arrow keys move within one name.
  for (const radio of document.querySelectorAll('fieldset [type=radio]')) {
    const {name} = radio.closest('fieldset').querySelector('[type=radio]');
    if (radio.name !== name) radio.name = name;
  }
  // The focus of the bar's button stays on it, wherever it leads now; that of what was closed goes to the row that it was
  // about, else to the start of the tab.
  if (held && document.activeElement === document.body && !held.checkVisibility()) {
    const isBars = held.matches('.go, #next-step-start');
    const find = (selector) => [...document.querySelectorAll(selector)].findLast((part) => part.checkVisibility());
    const place = (isBars && find('#next-step .go, #next-step-start')) || find('tr.chosen[tabindex], .tabitem');
    if (place?.matches('.tabitem')) place.tabIndex = -1;
    place?.focus({preventScroll: true});
  }
  // A button that works gets it back when it is done.
  if (held?.disabled && document.activeElement === document.body) working = held;
  if (working && !working.disabled) {
    if (document.activeElement === document.body && working.checkVisibility()) working.focus({preventScroll: true});
    working = null;
  }
  for (const info of document.querySelectorAll('.info-text:not([id])')) {
    info.id = `info-${named += 1}`;
    for (const box of info.closest('.block').querySelectorAll('input, textarea')) box.setAttribute('aria-describedby', info.id);
  }
  for (const label of document.querySelectorAll('[data-testid=block-info]:not([id])')) {
    label.id = `label-${named += 1}`;
    const group = label.closest('fieldset, label');
    const box = group?.matches('fieldset') ? group : group?.querySelector('input:not([aria-label]), textarea:not([aria-label])');
    box?.setAttribute('aria-labelledby', label.id);
  }
  for (const region of document.querySelectorAll('.scroll:not([tabindex])')) {
    const isWhole = region.scrollWidth <= region.clientWidth && region.scrollHeight <= region.clientHeight;
    if (!isWhole && !region.querySelector('[tabindex], a, button')) region.tabIndex = 0;
  }
  // The panel lists the problems; each is shown at its field as well, which has the name of the setting as a class.
  const problems = new Map([...document.querySelectorAll('#panel .wrong [data-field]')].map((link) => [link.dataset.field, link]));
  for (const note of document.querySelectorAll('.field-problem')) {
    const name = note.dataset.name;
    if (!problems.has(name)) mark(note.closest(`[class~="${name}"]`), note, '');
  }
  for (const [name, link] of problems) {
    for (const field of document.getElementsByClassName(name)) {
      mark(field, field.querySelector('.field-problem') ?? addNote(field, name), link.nextElementSibling.textContent);
    }
  }
  for (const id of opened) document.getElementById(id)?.setAttribute('open', '');
  markTerms();
};
// By the click, also that of a key: the `toggle` that follows is lost where the fold is drawn again before it.
document.addEventListener('click', ({target}) => {
  const fold = target.closest?.('summary')?.parentElement;
  if (fold?.id) opened[fold.open ? 'delete' : 'add'](fold.id);
}, true);

const addNote = (field, name) => {
  const note = document.createElement('p');
  Object.assign(note, {className: 'field-problem', id: `problem-${name}`});
  note.dataset.name = name;
  field.querySelector('.info-text, [data-testid=block-info]').after(note);
  return note;
};
const mark = (field, note, problem) => {
  if (note.textContent !== problem) note.textContent = problem;
  if (!problem) note.remove();
  const info = field.querySelector('.info-text');
  for (const box of field.querySelectorAll(BOXES)) {
    box.ariaInvalid = problem ? 'true' : null;
    box.setAttribute('aria-describedby', [problem && note.id, info?.id].filter(Boolean).join(' '));
  }
};

// A link to a field opens the tab and the fold that it is in; what was never in sight is laid out only then.
const lead = (name) => {
  const parts = new Map(window.gradio_config.components.map((part) => [part.id, part]));
  const find = ({id, children = []}, above) => {
    const part = parts.get(id);
    if (part?.props.elem_classes?.includes(name)) return above;
    return children.reduce((path, child) => path ?? find(child, [...above, part]), undefined);
  };
  const path = find(window.gradio_config.layout, []) ?? [];
  const reach = (tries) => {
    for (const part of path) {
      const place = document.getElementById(part?.props.elem_id);
      if (part?.type === 'tabitem') document.querySelector(`[role=tab][data-tab-id="${part.props.id}"]:not(.selected)`)?.click();
      if (place?.id === 'train-setup' && !place.offsetParent) document.querySelector('#train-view input')?.click();
      if (part?.type === 'accordion') place?.querySelector('.label-wrap:not(.open)')?.click();
    }
    const boxes = [...document.getElementsByClassName(name)].map((field) => field.querySelector(BOXES));
    const box = boxes.find((one) => one?.offsetParent);
    box?.scrollIntoView({block: 'center'});
    box?.focus();
    if (!box && path.length && tries) setTimeout(reach, 50, tries - 1);
  };
  reach(60);
};
document.addEventListener('click', (event) => {
  const link = event.target.closest?.('[data-field], #next-step-run [data-pick]');
  if (link?.dataset.pick) pick(link.dataset.pick);
  else if (link) lead(link.dataset.field);
});

// A key that stands for a button lets it look pressed.
window.loratoryPress = (button) => {
  button?.classList.add('pressed');
  setTimeout(() => button?.classList.remove('pressed'), 200);
  requestAnimationFrame(() => setTimeout(() => button?.click()));  // what it starts may take longer than a frame
};
// Where the bar's step is in front already, its button presses the first of these that can be pressed; what a person has to decide or type gets the focus.
document.addEventListener('click', ({target}) => {
  const choices = target.closest?.('[data-press]')?.dataset.press.split(', ') ?? [];
  const chosen = choices.map((choice) => document.querySelector(choice)).find((one) => one?.offsetParent && !one.disabled);
  chosen?.focus();
  if (!chosen?.matches('textarea, .verdict')) window.loratoryPress(chosen);
});

// The run that is followed, else the newest active one; one that ended out of sight, until the page is looked at.
let endedAt = null;
let missed = '';
const entitle = () => {
  const followed = document.querySelector('#run-heading .tab-title');
  const shown = followed?.parentElement.offsetParent ? followed : document.querySelector('#header .tab-title.active');
  const ended = document.querySelector('#header .tab-title.ended')?.dataset;
  const at = Number(ended?.at ?? 0);
  if (endedAt !== null && at > endedAt) {
    if (document.hidden) missed = ended.title;
    if (window.Notification?.permission === 'granted' && localStorage.getItem('loratory-notify') === 'on') {
      const note = new Notification(ended.name, {body: ended.title, tag: `${ended.run}-${ended.at}`});
      note.onclick = () => { window.focus(); note.close(); };
    }
  }
  if (document.getElementById('tab-titles')) endedAt = Math.max(at, endedAt ?? 0);
  const words = missed || shown?.dataset.title;
  const title = words ? `${words} · Loratory` : 'Loratory';
  if (document.title !== title) document.title = title;
};
document.addEventListener('visibilitychange', () => { if (!document.hidden) { missed = ''; entitle(); } });

// The address has the tab in front and what is in hand there, so Back, Forward, a reload and a link lead to it.
const ROOT = new URL(document.baseURI).pathname;
const bar = (selector) => document.querySelector(`#next-step ${selector}`)?.dataset ?? {};
const shownRun = (id) => [...document.querySelectorAll(`#${id} [data-run]`)].find((run) => run.parentElement.offsetParent)?.dataset.run;
const IN_HAND = {
  data: () => bar('.chosen').name, train: () => shownRun('train-follow'), chat: () => bar('.in-hand').run, export: () => bar('.in-hand').run,
  runs: () => shownRun('run-details') ?? shownRun('shared-heading'),
};
const tabs = () => [...document.querySelectorAll('#tabs [role=tab]')];
let address = null; // of what the page shows; null until the first one is opened
let opening = ''; // the address that is looked up; a person who leaves meanwhile is led nowhere
let [hasActed, hasLeft] = [false, false]; // since the last entry of the history: whether a person did anything, or left a run by Back

window.loratoryArrive = () => {
  const tab = opening && tabs().find((each) => each.dataset.tabId === opening.split('/')[0]);
  [opening, hasLeft] = ['', opening ? opening === 'runs' : hasLeft];
  if (!tab) return;
  if (tab.ariaSelected !== 'true') tab.click();
  arrangeSoon();
};
const openAddress = () => {
  opening = address = decodeURIComponent(location.pathname.slice(ROOT.length)) || bar('.chosen').lands;
  hasActed = false;
  window.loratoryChose = address === 'train';
  if (/[/]|^train$/.test(address)) pick(`/${address}`);
  else window.loratoryArrive();
};
const act = ({isTrusted, target, type}) => {
  if (isTrusted) [hasActed, hasLeft] = [true, false];
  // Train opens with the draft that is being made, rather than with a run.
  if (isTrusted && type === 'click' && target.closest?.('[role=tabpanel]:has(#catalog, #samples, #method-table)')) window.loratoryChose = true;
  if (!isTrusted || !target.closest?.('[role=tab], button, #train-view')) return;
  opening = '';
  address ??= '';
  if (target.closest('#train-view, #train-setup, [data-pick=train], [data-field], #next-step-start')) window.loratoryChose = true;
  if (target.closest('[data-pick^="follow:"], #run-to-train')) window.loratoryChose = false;
};
for (const type of ['click', 'keydown']) document.addEventListener(type, act, true);
const addressTab = () => {
  const front = tabs().find((tab) => tab.ariaSelected === 'true');
  // Not before this browser's values are in the form: a tab that is laid out earlier begins without them.
  if (!front || opening || bar('.chosen').lands === undefined) return;
  if (address === null) return openAddress();
  // Also a run that a late answer opens again.
  if (hasLeft && shownRun('run-details')) return document.getElementById('run-close').click();
  const name = [front.dataset.tabId, IN_HAND[front.dataset.tabId]?.()].filter(Boolean).join('/');
  const path = ROOT + name.split('/').map(encodeURIComponent).join('/');
  if (path === location.pathname) return;
  history[hasActed && address ? 'pushState' : 'replaceState'](null, '', path + location.search);
  [address, hasActed] = [name, false];
};
window.addEventListener('popstate', openAddress);

let isAwaited = false;
const arrangeSoon = () => {
  if (isAwaited) return;
  isAwaited = true;
  // A page that is out of sight draws no frames.
  (document.hidden ? setTimeout : requestAnimationFrame)(() => { isAwaited = false; arrange(); entitle(); addressTab(); });
};
new MutationObserver(arrangeSoon).observe(document.body, {childList: true, subtree: true, attributeFilter: ['aria-selected', 'disabled', 'data-title', 'data-at', 'data-name', 'data-run']});
window.addEventListener('resize', arrangeSoon);
arrange();
entitle();
addressTab();

const STEPS = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
document.addEventListener('keydown', (event) => {
  const [step, tab] = [STEPS[event.key], event.target.closest?.('[role=tab]')];
  if (!tab || !step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const tabs = [...tab.parentElement.querySelectorAll('[role=tab]')];
  const to = tabs.indexOf(tab) + step;
  const next = Number.isFinite(step) ? tabs.at(to % tabs.length) : tabs.at(step < 0 ? 0 : -1);
  next.focus();
  next.click();
});

// A value whose order of magnitude matters goes along 1, 2, 5, 10: adding 1 to a learning rate ruins a run.
const LADDER = Array.from({length: 20}, (_, power) => [1, 2, 5].map((digit) => Number(`${digit}e${power - 12}`))).flat();
document.addEventListener('keydown', (event) => {
  const [up, box] = [{ArrowUp: true, ArrowDown: false}[event.key], event.target];
  if (up === undefined || !box.matches?.('.by-decades input')) return;
  event.preventDefault();
  const value = Number(box.value || box.placeholder);
  const near = 1e-9 * value; // 0.30000000000000004 is 0.3
  const next = up ? LADDER.find((step) => step > Math.max(value + near, value > 0 ? 0 : 0.001)) : LADDER.findLast((step) => step < value - near);
  if (next === undefined) return;
  box.value = next;
  box.dispatchEvent(new Event('input', {bubbles: true}));
});
// The wheel scrolls the page: a browser changes no number that is only to be read.
document.addEventListener('wheel', ({target}) => {
  if (target.type !== 'number' || target.readOnly) return;
  target.readOnly = true;
  setTimeout(() => { target.readOnly = false; });
}, {capture: true, passive: true});
