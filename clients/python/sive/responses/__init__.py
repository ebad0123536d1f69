"""OpenAI's responses on top of chat completions, for backends that have only those: text in, text out."""
