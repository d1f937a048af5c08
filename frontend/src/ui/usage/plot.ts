/** Bars of one value a day or another step of time, by uPlot, which is loaded when the first chart is drawn. */
import type uPlot from "uplot";
import { amount } from "../../core/usage";

export interface Plot {
  /** Show one bar as if it were pointed at; null: none. */
  point(day: number | null): void;
  destroy(): void;
}

const HEIGHT = 168;

/** Steps between the lines of the value axis, in powers of ten, so that no two lines have the same label. */
const STEPS = [-2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((power) =>
  [1, 2, 5].map((step) => Number(`${step}e${power}`)),
);

/**
 * Draws into `target`; `onPoint` is told the index of the bar that is pointed at, or null. Bars are numbered from 1 below
 * the axis, as days are, or have the names that `name` gives for some of them. `finest` is the smallest difference that
 * the value axis tells: 1 for what is counted.
 */
export async function draw(
  target: HTMLElement,
  values: number[],
  colour: string,
  onPoint: (index: number | null) => void,
  finest: number,
  name?: (index: number) => string,
): Promise<Plot> {
  const [{ default: UPlot }] = await Promise.all([import("uplot"), import("uplot/dist/uPlot.min.css")]);
  const style = getComputedStyle(document.documentElement);
  const token = (name: string) => style.getPropertyValue(name).trim();
  const font = `${token("--t-xs")} ${token("--sans")}`;
  const top = Math.max(...values, 0);
  const axis = { stroke: token("--ink-3"), font, ticks: { show: false } } as const;
  const options: uPlot.Options = {
    width: target.clientWidth,
    height: HEIGHT,
    padding: [8, name ? 28 : 4, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: false, range: [0.4, values.length + 0.6] },
      // With little or nothing used there are still lines to read it by.
      y: { range: [0, top > 0 ? Math.max(top * 1.1, finest * 2) : 1] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 22,
        gap: 3,
        space: name ? 64 : 34,
        incrs: [1, 2, 5, 10, 12, 20, 24],
        ...(name ? { values: (_: uPlot, splits: number[]) => splits.map((split) => name(split - 1)) } : {}),
      },
      {
        ...axis,
        grid: { stroke: token("--line"), width: 1 },
        size: 44,
        space: 36,
        incrs: STEPS.filter((step) => step >= finest),
        values: (_, splits) => splits.map((split) => amount(split)),
      },
    ],
    series: [
      {},
      {
        fill: colour,
        width: 0,
        points: { show: false },
        ...(UPlot.paths.bars ? { paths: UPlot.paths.bars({ size: [0.66, 26], radius: 0.12 }) } : {}),
      },
    ],
    cursor: {
      y: false,
      points: { show: false },
      drag: { x: false, y: false },
      // The line stands in the middle of the bar that is told of.
      move: (plot, left, top) => [left < 0 ? left : plot.valToPos(plot.posToIdx(left) + 1, "x"), top],
    },
    hooks: { setCursor: [(plot) => onPoint(plot.cursor.idx ?? null)] },
  };
  const data: uPlot.AlignedData = [values.map((_, index) => index + 1), values];
  const plot = new UPlot(options, data, target);
  const observer = new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: HEIGHT }));
  observer.observe(target);
  return {
    point(day) {
      const left = day === null ? -10 : plot.valToPos(day + 1, "x");
      plot.setCursor({ left, top: day === null ? -10 : 0 });
    },
    destroy() {
      observer.disconnect();
      plot.destroy();
    },
  };
}
