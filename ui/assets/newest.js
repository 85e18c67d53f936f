// Keeps the newest question and its answers in sight above the row that stays, until a person scrolls back; folds long answers.
let newest = '';
let follows = false;
let reached = 0;  // where this script scrolled to
let toEnd = false;  // after Jump to newest: the end of an answer matters more than its question
const opened = new Set();  // texts of answers that a person wants to see whole

const heightOf = (row) => row?.offsetHeight ?? 0;
const foot = () => heightOf(document.getElementById('next-step')) + heightOf(element.closest('.column').querySelector('.stays'));
const hiddenBelow = () => element.getBoundingClientRect().bottom + foot() - window.innerHeight;
const offerJump = () => {
  const jump = element.querySelector('.jump');
  if (jump) [jump.style.bottom, jump.hidden] = [`${foot() + 8}px`, hiddenBelow() < 40];
};
// A shorter page ends higher, which does not end following.
const noticeScroll = () => {
  if (window.scrollY < Math.min(reached, document.documentElement.scrollHeight - window.innerHeight) - 8) follows = false;
};
const follow = () => {
  noticeScroll();
  for (const answer of element.querySelectorAll('.answer.folds')) {
    const text = answer.querySelector('.text');
    answer.classList.toggle('whole', opened.has(text.textContent));
    answer.classList.toggle('cut', text.scrollHeight > text.clientHeight + 4);
  }
  const questions = element.querySelectorAll('.question');
  const question = questions[questions.length - 1];
  const now = question ? questions.length + question.lastChild.textContent : '';  // without its buttons
  if (now !== newest) [newest, follows, toEnd] = [now, Boolean(now), false];
  if (follows && element.offsetParent) {
    // The whole answer, or as much of it as fits below its question.
    const top = question.getBoundingClientRect().top - 8;
    const hidden = toEnd ? hiddenBelow() : Math.min(hiddenBelow(), top);
    if (hidden > 0 || (!toEnd && top < 0)) window.scrollBy(0, hidden);
    reached = window.scrollY;
  }
  offerJump();
};
element.addEventListener('click', ({target}) => {
  if (target.closest('.more')) opened.add(target.closest('.answer').querySelector('.text').textContent);
  if (target.closest('.jump')) [follows, toEnd, reached] = [true, true, 0];
  if (target.closest('.more, .jump')) follow();
});
window.addEventListener('scroll', () => { noticeScroll(); offerJump(); }, {passive: true});
new MutationObserver(follow).observe(element, {childList: true, subtree: true, characterData: true});
new ResizeObserver(follow).observe(element);
