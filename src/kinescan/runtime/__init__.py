"""What verbs share with the operating system: files read and written safely, text made safe to show, URLs masked."""
