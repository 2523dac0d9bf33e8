"""What every verb needs: files read and written safely, text made safe to show, URLs masked."""
