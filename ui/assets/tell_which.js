// Shows which token the pointer is on. A character that several tokens spell belongs to the first; the others are empty.
element.addEventListener('mouseover', (event) => {
  const token = event.target;
  if (token.tagName !== 'I' || token.title || !token.parentElement.dataset.ids) return;
  const tokens = Array.from(token.parentElement.children);
  const ids = token.parentElement.dataset.ids.split(' ');
  const first = tokens.indexOf(token);
  let end = first + 1;
  while (end < tokens.length && !tokens[end].textContent) end += 1;
  const words = end - first > 1 ? 'tokens' : 'token';
  token.title = `${token.parentElement.dataset.label}, ${words} ${ids.slice(first, end).join(' + ')}`;
});
