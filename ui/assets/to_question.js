// Puts the cursor in the question of the chat, which is laid out once its model is loaded; tells that it was done.
(wanted) => {
  let frames = 120;
  const enter = () => {
    const box = document.querySelector('#chat-question textarea');
    if (box && box.offsetParent) box.focus();
    else if ((frames -= 1)) requestAnimationFrame(enter);
  };
  if (wanted) enter();
  return false;
}
