/** The browser's WebSocket behind the narrow interface that connections in core/ use. */
import type { Connect } from "../core/socket";

export function socketTo(path: string): Connect {
  return (events) => {
    const url = new URL(path, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => events.open();
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") events.text(data);
      else events.bytes(new Uint8Array(data as ArrayBuffer));
    };
    socket.onclose = ({ code, reason }) => events.closed(code, reason);
    return {
      send: (data) => {
        // What is said between a close and its event is lost either way; throwing would only hide the reason.
        if (socket.readyState === WebSocket.OPEN) socket.send(data);
      },
      close: (code) => socket.close(code),
    };
  };
}
