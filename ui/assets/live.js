// Asks the server `seconds` apart for what is new, and puts each part of the answer into its place.
// Nothing is asked while the browser's tab or this part of the page is out of sight, nor while an answer is under way.
const {seconds, whileHidden} = element.firstElementChild.dataset;
let asked = null;
let stamp = '';
let waiting = false;

// A hidden page polls every fourth time, so it can still notify when a run ends.
let rounds = 0;
const isInSight = () => element.isConnected && element.parentElement.offsetParent !== null && (!document.hidden || (whileHidden && (rounds += 1) % 4 === 0));

const look = async () => {
  const question = props.value;
  if (!question || waiting || !isInSight()) return;
  if (question !== asked) [asked, stamp] = [question, ''];
  waiting = true;
  try {
    const answer = await server.query([question, stamp]);
    if (!answer || props.value !== question) return;
    const news = JSON.parse(answer);
    stamp = news.stamp;
    for (const [id, value] of Object.entries(news.values)) window.loratoryPlaces?.[id]?.(value);
    if (news.submit) trigger('submit');
  } catch (error) {
    // The server may be restarting; the next question asks for the same.
  } finally {
    waiting = false;
  }
};

const clock = setInterval(() => element.isConnected ? look() : clearInterval(clock), seconds * 1000);
document.addEventListener('visibilitychange', look);
if (whileHidden) watch('value', look);  // of the header, whose question has the chosen run
look();  // the layout may be as old as the server
