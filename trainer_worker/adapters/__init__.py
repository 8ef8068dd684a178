"""Nowcasts inside other people's training loops; each module needs the framework it is named for, and no other."""
