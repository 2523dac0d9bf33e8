"""How the page looks in light and in dark, wide and on a phone; and what ties the timeline to the player."""

STYLE = """
.gradio-container { max-width: 1120px !important; margin: auto; padding: 0 !important; }
.gradio-container .main { padding: 1rem !important; } .gradio-container .html-container { padding: 0 !important; }
.ks-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem .8rem; padding: .6rem 0 0; }
.ks-head h1 { margin: 0; font-size: 1.5rem; letter-spacing: -.02em; } .ks-head p { margin: 0; opacity: .75; }
.ks-kept { margin: 0; font-size: .85rem; opacity: .8; text-wrap: pretty; }
#ks-video video, #ks-asked video { max-height: 420px; background: #000; }
#ks-recount { display: none; }
#ks-look, #ks-ask { align-self: stretch; min-height: 44px; }
.ks-pair { display: grid; gap: 1.6rem; grid-template-columns: minmax(0, 1fr); }
.ks-timeline h3, .ks-strip h3 { margin: .2rem 0 .5rem; font-size: 1rem; font-weight: 500; overflow-wrap: anywhere; }
.ks-timeline h3 small, .ks-key small { opacity: .75; font-weight: 400; }
.ks-strip h3 { margin-top: 1.2rem; }
.dark .ks-plot polyline, .dark .ks-event, .dark .ks-legend i { filter: brightness(1.4); }
.ks-model { opacity: .75; } .ks-model:not(:empty)::after { content: ":"; }
.ks-label { font-size: 1.4em; font-weight: 700; }
.ks-plot, .ks-speed { position: relative; }
.ks-plot { height: 150px; cursor: pointer; touch-action: manipulation; }
.ks-plot:focus-visible { outline: 2px solid var(--primary-500); outline-offset: 4px; border-radius: 4px; }
.ks-plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.ks-plot polyline { fill: none; stroke-width: 2.5px; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.ks-grid { stroke: currentColor; opacity: .22; stroke-width: 1px; vector-effect: non-scaling-stroke; }
.ks-body { margin-right: 2.9rem; }
.ks-level { position: absolute; left: calc(100% + .4rem); transform: translateY(-50%); font-size: .72rem; opacity: .75;
  line-height: 1; white-space: nowrap; pointer-events: none; }
.ks-cursor { position: absolute; top: -2px; bottom: -2px; left: calc(var(--at, 0) * 100%); width: 2px;
  margin-left: -1px; background: currentColor; opacity: .85; pointer-events: none; }
.ks-speed .ks-cursor { background: #fff; mix-blend-mode: difference; }
.ks-ticks { position: relative; height: 1.3rem; font-size: .75rem; opacity: .75; margin-top: .2rem; }
.ks-ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.ks-ticks .ks-first { transform: none; } .ks-ticks .ks-last { transform: translateX(-100%); }
.ks-rows { margin: .35rem 0 .6rem; }
.ks-row-name { display: block; font-size: .78rem; font-weight: 600; line-height: 1.25rem; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.ks-row { position: relative; height: 12px; margin-bottom: 3px; background: rgba(128, 128, 128, .15);
  border-radius: 3px; }
.ks-event { position: absolute; top: 0; bottom: 0; min-width: 4px; border-radius: 3px; }
.ks-part-head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: .2rem 1rem; margin: .9rem 0 .35rem; }
.ks-part-head h4 { margin: 0; font-size: .9rem; font-weight: 600; }
.ks-speed img { display: block; width: 100%; height: 84px; border-radius: 4px; image-rendering: pixelated; }
.ks-keys { display: inline-flex; flex-wrap: wrap; align-items: center; gap: .25rem .8rem; font-size: .8rem; }
.ks-legend { margin: 0 0 .7rem; font-size: .88rem; }
.ks-key { white-space: nowrap; } .ks-key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px;
  margin-right: .35em; vertical-align: -.05em; }
.ks-gone { background: rgba(128, 128, 128, .3); }
.ks-ramp { display: inline-block; width: 84px; height: .8em; border-radius: 3px; }
.ks-listed { font-size: .88rem; } .ks-listed summary { cursor: pointer; padding: .3rem 0; }
.ks-listed ul { margin: .2rem 0; padding-left: 1.2em; }
.ks-note { font-size: .82rem; opacity: .75; margin: .3rem 0; text-wrap: pretty; }
.ks-cells { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .5rem; }
.ks-large { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.ks-cells figure { margin: 0; } .ks-cells figcaption { font-size: .75rem; opacity: .75; text-align: center; }
.ks-cell { position: relative; overflow: hidden; border-radius: 6px; line-height: 0; background: #000; }
.ks-cell > img:first-child { width: 100%; height: auto; display: block; }
.ks-over { position: absolute; inset: 0; width: 100%; height: 100%; }
.ks-heat { position: absolute; image-rendering: pixelated; max-width: none; }
.ks-unseen { position: absolute; top: 0; bottom: 0; left: 0; right: 0; background: rgba(0, 0, 0, .5); }
.ks-unseen[style*="left:0"] { right: auto; } .ks-unseen[style*="right:0"] { left: auto; }
.ks-unseen[style*="top:0"] { bottom: auto; } .ks-unseen[style*="bottom:0"] { top: auto; }
.ks-problem { border-left: 4px solid #d1495b; padding: .5rem .9rem; background: rgba(209, 73, 91, .12);
  border-radius: 4px; }
.ks-answer { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; margin: .4rem 0; min-height: 1.4em; }
.ks-held svg { width: 100%; height: 64px; display: block; }
.ks-held .ks-slot { fill: rgba(128, 128, 128, .3); }
@media (min-width: 900px) {
  .ks-pair.ks-two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .ks-two .ks-cells { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
@media (max-width: 640px) {
  .gradio-container .main { padding: .7rem !important; }
  .ks-cells { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .35rem; }
  .ks-large { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .ks-plot { height: 120px; }
}
"""

SCRIPT = """
() => {
  const player = () => document.querySelector('#ks-video video');
  const lines = () => document.querySelectorAll('.ks-timeline');
  const show = () => {
    const video = player();
    if (!video) return;
    for (const line of lines()) {
      const at = Math.min(1, video.currentTime / Number(line.dataset.duration));
      line.style.setProperty('--at', at);
      line.querySelector('.ks-plot')?.setAttribute('aria-valuenow', video.currentTime.toFixed(2));
    }
  };
  const seek = (line, fraction) => {
    const video = player();
    if (video) video.currentTime = Math.min(1, Math.max(0, fraction)) * Number(line.dataset.duration);
    show();
  };
  document.addEventListener('click', (event) => {
    const plot = event.target.closest?.('.ks-plot, .ks-speed');
    if (!plot) return;
    const box = plot.getBoundingClientRect();
    seek(plot.closest('.ks-timeline'), (event.clientX - box.left) / box.width);
  });
  document.addEventListener('keydown', (event) => {
    const plot = event.target.closest?.('.ks-plot'), video = player();
    const step = {ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1}[event.key];
    if (!plot || !video || !step) return;
    const line = plot.closest('.ks-timeline');
    seek(line, video.currentTime / Number(line.dataset.duration) + step);
    event.preventDefault();
  });
  setInterval(show, 100);
  const recount = () => document.hidden || document.querySelector('#ks-recount')?.click();
  // of a refused upload the page tells nothing but that its request has ended
  new PerformanceObserver((list) => {
    if (list.getEntries().some((entry) => entry.name.includes('/gradio_api/upload?'))) recount();
  }).observe({type: 'resource'});
  document.addEventListener('visibilitychange', recount);
  setInterval(recount, 15000);
}
"""
"""The line in the timeline follows the player; a click or an arrow key in the timeline moves the player.

How many videos are kept is asked again when an upload has ended, however it ended, when the tab is looked at again, and
now and then.
"""
