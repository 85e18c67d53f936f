// Keeps the newest question and its answers in sight above the row that stays, until a person scrolls back.
let newest = '';
let follows = false;
const leave = (event) => { if (!(event.deltaY > 0)) follows = false; };
for (const type of ['wheel', 'touchmove']) window.addEventListener(type, leave, {passive: true});

const follow = () => {
  const questions = element.querySelectorAll('.question');
  const question = questions[questions.length - 1];
  const now = question ? questions.length + question.textContent : '';
  if (now !== newest) [newest, follows] = [now, Boolean(now)];
  if (!follows || !element.offsetParent) return;
  const row = element.closest('.column').querySelector('.stays');
  const bar = document.getElementById('next-step');
  const foot = window.innerHeight - (bar?.offsetHeight ?? 0) - (row?.offsetHeight ?? 0);
  // The whole answer, or as much of it as fits below its question.
  const hidden = Math.min(element.getBoundingClientRect().bottom - foot, question.getBoundingClientRect().top - 8);
  if (hidden > 0 || question.getBoundingClientRect().top < 8) window.scrollBy(0, hidden);
};
new MutationObserver(follow).observe(element, {childList: true, subtree: true, characterData: true});
new ResizeObserver(follow).observe(element);
