"""Server-rendered pages: the frame, signing in, and the places where the browser's parts are mounted."""
