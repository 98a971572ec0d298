"""torch and PEFT in this process: the embedded default. The only room that may load them, and only when it trains."""
