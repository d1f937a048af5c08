/** The terminal's colours from the design's tokens, as the #rrggbb that xterm.js reads. */
import type { ISearchDecorationOptions } from "@xterm/addon-search";
import type { ITheme } from "@xterm/xterm";

const NAMES = [
  "black",
  "red",
  "green",
  "yellow",
  "blue",
  "magenta",
  "cyan",
  "white",
  "brightBlack",
  "brightRed",
  "brightGreen",
  "brightYellow",
  "brightBlue",
  "brightMagenta",
  "brightCyan",
  "brightWhite",
] as const;

/** What tokens are in the theme of now. */
function colours(): (token: string) => string {
  const styles = getComputedStyle(document.documentElement);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  return (token) => {
    const value = styles.getPropertyValue(token).trim();
    if (!pen) return value;
    pen.fillStyle = value;
    pen.fillRect(0, 0, 1, 1);
    const [red = 0, green = 0, blue = 0] = pen.getImageData(0, 0, 1, 1).data;
    return `#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  };
}

export function terminalTheme(): ITheme {
  const colour = colours();
  return {
    background: colour("--term-bg"),
    foreground: colour("--term-fg"),
    cursor: colour("--term-cursor"),
    cursorAccent: colour("--term-bg"),
    selectionBackground: colour("--term-selection"),
    ...Object.fromEntries(NAMES.map((name, index) => [name, colour(`--ansi-${index}`)])),
  };
}

/** How what was searched for is marked. */
export function searchMarks(): ISearchDecorationOptions {
  const colour = colours();
  return {
    matchBackground: colour("--term-match"),
    matchOverviewRuler: colour("--term-match"),
    activeMatchBackground: colour("--term-match-active"),
    activeMatchColorOverviewRuler: colour("--term-match-active"),
  };
}
