"""The PEFT methods: settings and traits of each, and the registry that everything asks."""
