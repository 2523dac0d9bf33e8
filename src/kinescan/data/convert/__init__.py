"""Exports of annotation tools, read as published; `kinescan data convert` writes them as path,start,end,label."""
