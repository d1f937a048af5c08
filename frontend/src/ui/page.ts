/** What every page does, islands or not: the theme, menus that close, and texts that can be copied. */
import { Store } from "../core/store";

export type Theme = "light" | "dark";

const root = document.documentElement;
export const theme = new Store<Theme>(root.dataset.theme === "dark" ? "dark" : "light");

export function switchTheme(): void {
  const next: Theme = theme.value === "dark" ? "light" : "dark";
  root.dataset.themeChosen = "";
  setTheme(next);
  const secure = location.protocol === "https:" ? "; Secure" : "";
  // biome-ignore lint/suspicious/noDocumentCookie: the server reads it; the Cookie Store API is missing in Firefox.
  document.cookie = `theme=${next}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
}

function setTheme(next: Theme): void {
  root.dataset.theme = next;
  theme.set(next);
}

/** Whether it worked: outside https and localhost a browser gives no clipboard, and the old way is tried. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (before instanceof HTMLElement) before.focus();
    return done;
  }
}

/** Arrow keys open a menu and go round in it; Tab and Enter are the browser's own. */
function walk(menu: HTMLDetailsElement, event: KeyboardEvent): void {
  const items = [...menu.querySelectorAll<HTMLElement>(".menu__item")];
  const at = items.indexOf(document.activeElement as HTMLElement);
  const next = {
    ArrowDown: at + 1,
    ArrowUp: at < 0 ? -1 : at - 1,
    Home: menu.open ? 0 : undefined,
    End: menu.open ? -1 : undefined,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  menu.open = true;
  items.at(next % items.length)?.focus();
}

export function start(): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    if (root.dataset.themeChosen === undefined) setTheme(event.matches ? "dark" : "light");
  });
  for (const button of document.querySelectorAll("[data-theme-switch]"))
    button.addEventListener("click", switchTheme);
  const menus = [...document.querySelectorAll<HTMLDetailsElement>("details[data-pop]")];
  for (const menu of menus) {
    menu.addEventListener("keydown", (event) => walk(menu, event));
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget as Node)) menu.open = false;
    });
  }
  document.addEventListener("click", (event) => {
    for (const menu of menus) if (!menu.contains(event.target as Node)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus) {
      if (!menu.open) continue;
      menu.open = false;
      menu.querySelector("summary")?.focus();
    }
  });
}
