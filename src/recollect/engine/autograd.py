"""placeholder until llvm lands"""
def obstacle(x): return "anything yet"
def description(x): return ""
def run(*a, **k): raise RuntimeError
