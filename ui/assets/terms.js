// Terms that someone who has never fine-tuned a model may not know, with one sentence each. The first one in a title is marked,
// and shows its sentence while it is pointed at or has the focus; a tap gives it the focus, Escape closes it.
const TERMS = {
  PEFT: 'Parameter-efficient fine-tuning: the model stays as it is, and a small addition is trained.',
  LoRA: 'Low-rank adaptation: two narrow matrices next to a layer are trained in place of the layer itself.',
  QLoRA: 'LoRA on a model whose weights are stored in four bits, which takes about a third of the memory.',
  adapter: 'The small set of weights that a run trains; it works together with the model that it was trained on.',
  'base model': 'The model before your training; its weights do not change.',
  quantization: 'Storing weights with fewer bits, which saves memory and costs a little accuracy.',
  'held-out': 'Of rows that are set aside: the model never trains on them, so they show whether it learned more than the rows.',
  loss: 'How surprised the model is by the right next token, on average; lower is better.',
  perplexity: 'Between how many equally likely tokens the model hesitates, on average; lower is better.',
  chrF: 'How many runs of characters an answer shares with the reference answer, from 0 to 100.',
  'ROUGE-L': 'How much of the longest common sequence of words an answer shares with the reference answer, from 0 to 1.',
  logit: 'The raw score of a token before it becomes a probability.',
  token: 'A piece of text that the model reads or writes at once: a short word or a part of one.',
  'trained token': 'A token that the model learns to write; others are context that it only reads.',
  epoch: 'One pass over all training rows.',
  step: 'One update of the trained weights, from one batch of rows.',
  batch: 'The rows from which one update is computed.',
  gradient: 'In which direction, and how strongly, each trained weight should change.',
  'gradient norm': 'The size of an update before the learning rate; sudden peaks mean unstable training.',
  'learning rate': 'How far each update moves the weights: too high and training breaks, too low and it learns little.',
  optimizer: 'The rule that turns gradients into updates; it remembers earlier ones, which takes memory.',
  activation: 'An intermediate result of a layer, kept until the update is computed.',
  checkpoint: 'A copy of a run at one step: it can be resumed, chatted with and exported.',
  trainable: 'What training may change; all other weights are frozen.',
  'reward margin': 'By how much the tuned model prefers the better answer, compared with the model it started from.',
  preference: 'A pair of answers to one question, of which one is marked as better.',
  objective: 'What is learned: to write the answers of the rows, or to prefer one answer to another.',
  dtype: 'The number format of the weights, such as bf16 with 16 bits.',
  attention: 'The part of each layer that looks at earlier tokens.',
  context: 'How many tokens the model can read at once.',
  fingerprint: 'A short code computed from content: the same code means the same data.',
  forgetting: 'How much worse the model became on general text that your rows do not have.',
  'margin of error': 'How far a run may exceed the expected memory: nine runs in ten stay within it.',
  'forward pass': 'The part of a step in which the model reads the rows.',
  'backward pass': 'The part of a step in which it is computed how each weight should change.',
  nats: 'The unit of loss: one nat less means that the right token is 2.7 times as likely.',
};
// Titles of our own views; Gradio sets the text of its labels itself, and these have help.
const TITLES = '.facts > div, table.plain th, dl dt, #side h3, .legend span, p.lead, #header .sub';
const SENTENCES = new Map(Object.entries(TERMS).map(([term, sentence]) => [term.toLowerCase(), sentence]));
// The longest first: `gradient norm` before `gradient`.
const LONGEST_FIRST = [...SENTENCES.keys()].sort((a, b) => b.length - a.length);
const TERM = new RegExp(`\\b(${LONGEST_FIRST.join('|')})s?\\b`, 'i');

const markTerms = () => {
  for (const title of document.querySelectorAll(`:is(${TITLES}):not(.marked, .term)`)) {
    title.classList.add('marked');
    if (title.querySelector('button, a') || title.closest('button, a')) continue;
    const texts = document.createTreeWalker(title, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const match = TERM.exec(texts.currentNode.data);
      if (!match) continue;
      const term = document.createElement('span');
      Object.assign(term, {className: 'term', role: 'button', tabIndex: 0, textContent: match[0]});
      term.dataset.explains = SENTENCES.get(match[1].toLowerCase());
      const found = texts.currentNode.splitText(match.index);
      found.splitText(match[0].length);
      found.replaceWith(term);
      break;
    }
  }
  if (!explained?.isConnected) explanation.hidden = true;
};

let explained = null; // the term whose sentence is shown
const explanation = document.createElement('div');
Object.assign(explanation, {id: 'explanation', role: 'tooltip', hidden: true});
(document.querySelector('main') ?? document.body).append(explanation); // within a landmark
const place = () => {
  if (explanation.hidden) return;
  const [at, own] = [explained.getBoundingClientRect(), explanation.getBoundingClientRect()];
  const top = at.bottom + own.height + 12 < innerHeight ? at.bottom + 6 : at.top - own.height - 6;
  explanation.style.translate = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px ${top}px`;
};
const explain = ({target}) => {
  explained = target.closest?.('.term') ?? null;
  explanation.hidden = !explained;
  if (!explained) return;
  explanation.textContent = explained.dataset.explains;
  explained.setAttribute('aria-describedby', explanation.id);
  place();
};
for (const kind of ['pointerover', 'focusin']) document.addEventListener(kind, explain);
document.addEventListener('keydown', ({key}) => { if (key === 'Escape') explanation.hidden = true; });
document.addEventListener('scroll', place, {capture: true, passive: true});
