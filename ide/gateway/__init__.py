"""The gateway: lets people and programs into sandboxes, over HTTPS and SSH."""
