// Shows the tokens of a picked row under each model, tinted and underlined by their loss.
const LEVELS = [0.1, 0.7, 2.3, 4.6], CHANCES = ['over 90%', '50 to 90%', '10 to 50%', '1 to 10%', 'under 1%'];
const NAMES = {base: 'Base model', tuned: 'Tuned model', second: 'Start of the run'};
const make = (tag, textContent, values = {}) => Object.assign(document.createElement(tag), {textContent}, values);
const lossToken = (text, level, loss = '') => {
  const token = make('i', text, {className: `loss-${level}`, title: loss && `loss ${loss}`});
  return Object.assign(token.dataset, {loss}) && token;
};
const showTokens = (event) => {
  const row = event.target.closest('[data-tokens]');
  if (!row || (event.key && !['Enter', ' '].includes(event.key))) return;
  const {pieces, tokens} = JSON.parse(row.dataset.tokens), legend = make('p', 'Probability of each token: ', {className: 'small losses'});
  legend.append(...CHANCES.map((chance, level) => lossToken(chance, level)));
  const answers = Object.entries(tokens).flatMap(([name, losses]) => {
    const levels = losses.map((loss) => LEVELS.filter((limit) => loss >= limit).length);
    const box = make('div', '', {className: 'tokens losses', tabIndex: 0, role: 'region', ariaLabel: `${NAMES[name]}, loss of each token`});
    box.append(...pieces.map((piece, at) => lossToken(piece || '·', levels[at], losses[at].toFixed(2))));
    return [make('h3', `Row ${row.cells[0].textContent}, ${NAMES[name]}`), box];
  });
  element.querySelectorAll('.row-tokens').forEach((place) => place.replaceChildren());
  row.closest('.beside').nextElementSibling.append(legend, ...answers);
};
['click', 'keydown'].forEach((kind) => element.addEventListener(kind, showTokens));
