// Axes: linear and logarithmic scales, ticks, names. The rules are those of `tercile plot` (src/plot.rs).

import { compact, number, pretty, svg } from './page.js';
import { t } from './i18n.js';

/** Whether the 98th percentile exceeds the median so far that a linear axis would draw most points in one spot. */
export function heavyTailed(values) {
  const sorted = Float64Array.from(values).sort();
  const quantile = (share) => sorted[Math.round((sorted.length - 1) * share)] ?? 0;
  return quantile(0) >= 0 && quantile(0.5) > 0 && quantile(0.98) > 8 * quantile(0.5);
}

/** Scale of these values; ln(1 + value) if logarithmic. */
export function scaleOf(values, logarithmic) {
  let [low, high] = d3.extent(values);
  if (low === undefined) [low, high] = [0, 1];
  // A constant feature is drawn in the middle.
  const room = low < high ? 0 : Math.max(Math.abs(low), 1) * 0.5;
  const scale = logarithmic ? d3.scaleSymlog() : d3.scaleLinear();
  return scale.domain([low - room, high + room]);
}

/** Round tick values within a scale. */
export function ticksOf(scale, logarithmic, most) {
  const [low, high] = scale.domain();
  if (!logarithmic) return scale.ticks(most);
  for (const steps of [[1], [1, 2, 5]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(Math.max(low, 1))); power <= Math.log10(Math.max(high, 1)) && power < 308; power += 1) {
      ticks.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= low && tick <= high));
    }
    if (ticks.length >= 3) return ticks.length > most ? ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0) : ticks;
  }
  return d3.ticks(low, high, most);
}

const tickText = (tick) => (Math.abs(tick) >= 10_000 ? compact(tick) : number(tick));

export const axisName = (feature, logarithmic) => pretty(feature) + (logarithmic ? ` (${t('log')})` : '');

/** Draws grid, ticks and names of both axes within a frame. */
export function drawAxes(layer, frame, across, up) {
  const { left, right, top, bottom } = frame;
  const parts = [];
  for (const tick of ticksOf(across.scale, across.logarithmic, Math.max(3, (right - left) / 80))) {
    const x = across.scale(tick);
    parts.push(svg('line', { class: 'grid', x1: x, x2: x, y1: top, y2: bottom }), svg('text', { x, y: bottom + 16, 'text-anchor': 'middle' }, tickText(tick)));
  }
  for (const tick of ticksOf(up.scale, up.logarithmic, Math.max(3, (bottom - top) / 55))) {
    const y = up.scale(tick);
    parts.push(svg('line', { class: 'grid', x1: left, x2: right, y1: y, y2: y }), svg('text', { x: left - 6, y: y + 4, 'text-anchor': 'end' }, tickText(tick)));
  }
  parts.push(
    svg('line', { class: 'axis', x1: left, x2: right, y1: bottom, y2: bottom }),
    svg('text', { x: (left + right) / 2, y: bottom + 34, 'text-anchor': 'middle' }, across.name),
    svg('text', { x: 0, y: top - 10, 'text-anchor': 'start' }, up.name),
  );
  layer.replaceChildren(...parts);
}
