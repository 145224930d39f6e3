package policy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryExportIsDocumented demands a comment on each package, and on each exported type, function, method, constant and variable.
// Names of a group share the group's comment, and so do functions on the lines right behind a documented one. Error, String and Unwrap
// need none: their interfaces say all.
func TestEveryExportIsDocumented(t *testing.T) {
	root := filepath.Join("..", "..")
	documented, packages := map[string]bool{}, map[string]bool{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		packages[dir] = true
		documented[dir] = documented[dir] || file.Doc != nil
		covered := 0 // the line up to which a comment reaches
		for _, decl := range file.Decls {
			first, last := fset.Position(decl.Pos()).Line, fset.Position(decl.End()).Line
			if f, ok := decl.(*ast.FuncDecl); ok && (f.Doc != nil || first == covered+1) {
				covered = last
				continue
			}
			for _, name := range bare(decl) {
				t.Errorf("%s: %s has no comment", fset.Position(name.Pos()), name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 10 {
		t.Errorf("only %d packages were found", len(packages))
	}
	for dir := range packages {
		if !documented[dir] {
			t.Errorf("%s: the package has no comment", dir)
		}
	}
}

// bare lists the exported names that decl leaves without a comment.
func bare(decl ast.Decl) (names []*ast.Ident) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		known := d.Recv != nil && (d.Name.Name == "Error" || d.Name.Name == "String" || d.Name.Name == "Unwrap")
		if d.Name.IsExported() && d.Doc == nil && !known && (d.Recv == nil || exportedReceiver(d.Recv)) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						names = append(names, n)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(r *ast.FieldList) bool {
	t := r.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
