/** The time, for ages that grow while one looks. */
import { readable } from "svelte/store";

export const now = readable(Date.now(), (set) => {
  const timer = setInterval(() => set(Date.now()), 1000);
  return () => clearInterval(timer);
});
