"""Pure decisions: no clock, no event loop, no process, no file, no socket."""
